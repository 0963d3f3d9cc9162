"""The operator's side of a broker that runs.

In the broker: `answers` to requests over the control socket (`mqttd.net.lines`), `explain` and
`why` for what became of messages, `audit` for who did what, `reload` for a new configuration.

On the terminal: `commands`, `bridges` and `plugins`, the sub-commands; `client`, the other end of
the socket; `show`, `explained` and `top`, what is printed. They know the broker by its socket
alone.
"""
