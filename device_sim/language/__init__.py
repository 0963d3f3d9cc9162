"""The language of scenarios: what a file may say, and what it means.

Pure: names, chance, values, bytes and times come out of a scenario and its seed; nothing here knows
a socket or the clock.
"""
