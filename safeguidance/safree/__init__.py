"""SAFREE (Yoon et al., arXiv 2410.12761): prompt tokens in the span of unsafe concepts are projected out of it.

Written from the paper's mathematics alone. One topic, one file: ``subspace`` (projectors), ``trigger`` (which tokens),
``filter`` (what becomes of the states), ``validation`` (for how much of the schedule), ``reattention`` (skip features),
``presets``.
"""

from .filter import (
    ConceptSpace,
    Encoded,
    FilterConfig,
    Filtered,
    concept_space,
    filter_prompt,
    join_spaces,
    vector,
)
from .presets import SAFREE_PRESETS, SafreePreset
from .reattention import ReattentionConfig, reattend
from .subspace import Subspace, span
from .trigger import TriggerConfig, Triggers, find_triggers
from .validation import ValidationConfig, held_share, strength_of_change

__all__ = [
    "SAFREE_PRESETS",
    "ConceptSpace",
    "Encoded",
    "FilterConfig",
    "Filtered",
    "ReattentionConfig",
    "SafreePreset",
    "Subspace",
    "TriggerConfig",
    "Triggers",
    "ValidationConfig",
    "concept_space",
    "filter_prompt",
    "find_triggers",
    "held_share",
    "join_spaces",
    "reattend",
    "span",
    "strength_of_change",
    "vector",
]
