"""Random bytes into every entry point that strangers reach. `python -m fuzz` runs all of it."""
