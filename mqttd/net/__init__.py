"""The shell: everything between the operating system and the pure core.

Owns: sockets, transports, the event loop, the one clock that the core is told. A connection is one
`asyncio.Protocol` that hands bytes to its `Connection` and, once per tick, writes what came of it.

Must not know: the store, hooks, configuration files. The composition root hands each part what it
needs as plain values.
"""
