"""The core of all bridges: an outbox that lasts, a way in that lasts, and one connection.

What it promises, and how: outward, the bridge is a client inside the broker with a session that
lasts. The session's queue is the outbox, and a message leaves it when the remote system has
confirmed it, or when it stands in the dead-letter topic. Inward, the remote system hears of an
acknowledgement when the broker has made the message durable. Both are at least once, by
composition, over the end of any of the three processes; every copy of a message carries the same
id, so a consumer can tell copies.

Who knows what:

    rules       the configuration of a rule; what is wrong with it; loops that the text shows
    template    `{topic[1]}/{client_id}`: texts that are filled in for each message
    identity    ids that survive a restart, the list of hops
    properties  properties of MQTT 5 as headers and as JSON, and back
    remote      the port: what a face implements, what it gets, and how it says what went wrong
    lanes       the order of each key, and who may be sent next
    outward     outbox → remote          inward   remote → broker
    link        connecting, waiting, pausing: the state of the one connection
    figures     what became of every message
    plugin      a bridge as a plugin: all of this put together

A face is a plugin of few hundred lines: a `Remote`, a rule with the keys of its system, a
configuration, and the plugin class that names the three.
"""
