"""kill -9 at any instant, and what has to be true afterwards.

    python -m tests.crash --kills 300 [--seed N] [--durability full|os|none]

A real broker process is killed and started again while real clients publish, subscribe, come and
go. Every client keeps what an MQTT client keeps: its session. In the end everything that was
acknowledged must have arrived. `actors` are the clients, `run` is the run and its verdict.
"""
