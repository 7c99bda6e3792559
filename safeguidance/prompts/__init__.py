"""Prompt files: readers, templates, checks."""
