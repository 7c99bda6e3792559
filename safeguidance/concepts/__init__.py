"""Unsafe concepts and everyday prompts, as data."""

from .banks import BENIGN_PROMPTS
from .categories import FIELD_PRESETS, PRESETS, Category, Concepts, parse_concepts, select_concepts

__all__ = [
    "BENIGN_PROMPTS",
    "FIELD_PRESETS",
    "PRESETS",
    "Category",
    "Concepts",
    "parse_concepts",
    "select_concepts",
]
