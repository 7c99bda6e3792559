"""Nodes: what a user sees. Glue only; the maths lives in ``safeguidance``."""
