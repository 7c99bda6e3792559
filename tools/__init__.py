"""Tools for maintainers: examples, translations, golden files, the archive, costs, and the test suites.

Start with `python -m tools --help` from the root of the pack.
"""
