"""Benchmarks: `bench.micro` times the core alone, `bench.macro` whole brokers side by side.

Nothing in here is imported by the broker, and no test asserts on a duration.
"""
