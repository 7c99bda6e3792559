"""A policy for a server: one file that says who may draw what, checked, explained, decided and written down.

Nothing here touches the host; ``nodes/policy`` does that.
"""
