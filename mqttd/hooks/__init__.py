"""Hooks: how plugins take part in what the broker decides, changes and reports."""
