"""Measurements on the testbed and what trains it; needs the repository, not part of the published archive."""
