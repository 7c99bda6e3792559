"""The report as a page, and the data beside it."""

from .write import Written, write

__all__ = ["Written", "write"]
