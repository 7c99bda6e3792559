"""The command line's commands that every installation has."""
