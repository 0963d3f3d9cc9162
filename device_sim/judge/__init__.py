"""Who is owed what, and what came: the ledger, its rules, its numbers.

Pure, and on the path of every message: what is counted here is compiled (see setup.py).
"""
