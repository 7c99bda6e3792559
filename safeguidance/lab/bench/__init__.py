"""Measurements on the testbed: methods by name, groups of captions, tables and pictures."""
