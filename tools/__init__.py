"""Scripts for the project itself; nothing that is installed imports them."""
