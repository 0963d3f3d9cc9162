"""Where promises are kept: the port (`base`), the ways to keep them, and the committer between."""
