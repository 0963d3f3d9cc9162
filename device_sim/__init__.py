"""device_sim: a fleet of simulated MQTT devices, and a verdict on the broker that serves them.

The package drives any MQTT broker and answers with an exit code: was everything delivered that had
to be, once where once was promised, in order, unharmed? `device_sim flood` needs no configuration.

Rooms, each importing only those before it, and in each room the modules in the same order:

    judge      payload histogram ranges tracks ledger oracles verdict thresholds
               pure: who is owed what, and what came; compiled, since it meets every message
    language   shapes content actions scenario naming chance expression encodings arrival values
               forecast check load save scenario_commands
               pure: what a scenario may say, and what it means
    results    style plot result html report export outputs compare result_commands
               the document of a run, and what is made of it
    engine     client publisher schedule plan feed     pure: the client, who sends what and when
               link connect loops tls flood ...        sockets, the clock, a flood
               proxy process control                   a bad network, a broker of its own
               device ... fleet acts run workers       a scenario: devices, stages, processes
    probing    inquiry probe                           what a broker supports
    cli        arguments to settings, verdict to exit code

Of the broker it uses the wire codec alone (`mqttd.core` spec, errors, wire, properties, packets,
encode, decode), never its logic: a simulator that shared the broker's mistakes could not see them.
`mqttd.yamltree`, which reads scenarios, knows YAML and no MQTT.
"""
