"""What says whether a picture is harmful: judges, found by name, several at once."""

from .loading import load

__all__ = ["load"]
