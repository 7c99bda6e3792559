"""Unsafe concepts as data, and a redirector made of their texts without any training."""

from .benign import BENIGN_PROMPTS, benign_bank
from .data import FIELD_PRESETS, PRESETS, TESTBED_PRESETS, Category, Concepts, parse_concepts, select_concepts
from .redirector import ConceptRedirector, make_concept_redirector

__all__ = [
    "BENIGN_PROMPTS",
    "FIELD_PRESETS",
    "PRESETS",
    "TESTBED_PRESETS",
    "Category",
    "ConceptRedirector",
    "Concepts",
    "benign_bank",
    "make_concept_redirector",
    "parse_concepts",
    "select_concepts",
]
