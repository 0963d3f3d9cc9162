"""The core: all of MQTT, and nothing else.

Owns: what a packet may look like, what a client may do when, who gets a message, what an
acknowledgement waits for, and every piece of state that a broker has. Bytes and `now` go in; bytes,
journal operations and events come out. `Broker` and `Connection` are the two doors; `Journal` is
the third, for whoever makes things durable.

Must not know: sockets, tasks, clocks, randomness, logging, files, SQL, the configuration. The shell
(`mqttd.net`, `mqttd.store`) does, and tells what it has to.

The modules stand in layers, and an import never goes up: spec, errors, wire; the codec; the
structures that hold topics and messages; one connection and one session; the broker over all.
`tests/test_layering.py` has the list.

Invariants: a function of its input: the same calls leave the same state and the same bytes, so that
a test needs no sleep and a fuzzer no network; nothing a client sends raises anything but a
`ProtocolError`, and none leaves `Connection.receive_data`; no work is proportional to all sessions
on the path of a message; state is plain data, never a suspended coroutine, a closure or a timer.

Written for mypyc, which compiles all modules here but this one: plain classes, `Final` integers,
`bytes`, early returns. The same files run uncompiled, only slower.
"""
