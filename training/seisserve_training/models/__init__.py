"""The networks, one a module."""
