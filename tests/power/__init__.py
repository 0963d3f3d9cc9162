"""The power goes at any instant, and what has to be true afterwards.

    python -m tests.power --cuts 50 [--durability full|os|none] [--seed N] [--json]

A broker works under a recorder of writes and syncs (`shim.c`). From its log the files are rebuilt
as they may stand after a cut at any point: what was written since the last sync is gone, is there,
or is torn at 512 bytes (`rebuild`). A fresh broker starts on them, the clients take up their
sessions as they stood at that point, and everything that had been acknowledged has to be there.

`record` is one recorded run with real clients, `resume` one cut and its verdict, `run` many.
"""
