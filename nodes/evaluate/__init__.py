"""Nodes for measuring: prompts from a file, judges of pictures, what a run cost and what its guards did."""
