"""The only modules that touch the host's internals; each imports the host inside functions."""
