"""Runtimes: what can run an artifact of a bundle in this process, one module each."""
