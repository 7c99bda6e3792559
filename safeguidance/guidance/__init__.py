"""Guidance methods: one method, one file, one frozen config and one pure function."""
