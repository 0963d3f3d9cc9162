"""device_sim: a fleet of simulated MQTT devices, and a verdict on the broker that serves them.

The package drives any MQTT broker and answers with an exit code: was everything delivered that had
to be, once where once was promised, in order, unharmed? `device_sim flood` needs no configuration.

Layers, each importing only those before it:

    histogram payload ranges verdict ledger     pure: numbers and bytes in, numbers out
    client publisher schedule plan              pure: the MQTT client, who sends what and when
    shapes content actions scenario             pure: what a scenario may say
    naming chance expression encodings          pure: names, chance, formulas, bytes
    arrival values forecast                     pure: when, what and how much
    check load save                             a scenario's file: read, checked, written
    tracks oracles feed                         pure: who is owed what; a device's messages
    link connect flood                          a flood: asyncio, sockets, the clock
    proxy process control                       a bad network, a broker of the run's own
    device dialogue fleet acts run workers      a scenario: devices, stages, several processes
    limits thresholds result progress           the machine's limits; the document of a run
    report plot html export outputs compare     what is made of it: text, HTML, CSV, JUnit XML
    inquiry probe                               what a broker supports
    running cli                                 arguments to settings, verdict to exit code

Of the broker it uses the wire codec alone (`mqttd.core` spec, errors, wire, properties, packets,
encode, decode), never its logic: a simulator that shared the broker's mistakes could not see them.
`mqttd.yamltree`, which reads scenarios, knows YAML and no MQTT.
"""
