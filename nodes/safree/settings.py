"""Settings of the SAFREE Embedding Filter: its fields behind advanced, and what they say together with the preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...safeguidance.errors import InputError, check_choice, check_range
from ...safeguidance.safree import SAFREE_PRESETS, FilterConfig, ValidationConfig
from ..inputs import AS_PRESET_CHOICE, choice_input, number_input, overrides, preset_input, preset_of
from ..prompt_judge import BY_CONCEPTS, JUDGE_BY

ALIASES = ["safree", "nsfw", "safety", "moderation", "training-free", "embedding projection", "concept erasure"]
"""Words under which the SAFREE nodes are found."""

_HOLD = {"self-validating": "program", "whole schedule": "whole", "as printed": "paper"}
_SCOPE = {"tokens": "tokens", "tokens, end and padding": "ends", "everything after a trigger": "after"}
_ORDER = {"concept removed last": "program", "prompt span last": "paper"}
_CHOOSE = {"strongest": "ratio", "nearest": "nearest"}
_STEPS = 50
HALF, STEEPNESS, LONGEST = 0.5333, 2.5, 0.2
"""The published settings for nudity."""
# which fields a way to hold the filter reads
_READS = {"program": ("half", "steepness", "longest"), "paper": ("longest",), "whole": ()}


def _name(names: Mapping[str, str], value: str) -> str:
    """What a choice is called on the node."""
    return next(name for name, known in names.items() if known == value)


PRESET_FIELDS: dict[str, dict[str, Any]] = {
    "hold": {name: _name(_HOLD, preset.validation.form) for name, preset in SAFREE_PRESETS.items()},
    "alpha": {name: preset.filter.trigger.alpha for name, preset in SAFREE_PRESETS.items()},
    "scope": {name: _name(_SCOPE, preset.filter.scope) for name, preset in SAFREE_PRESETS.items()},
}
"""What the presets say: input -> preset -> value."""


def filter_preset() -> io.Input:
    """The choice of a preset."""
    return preset_input(
        SAFREE_PRESETS,
        "How much is filtered. light: only the clearest triggers and nothing else, for the published "
        "share of the schedule; hardly changes a picture. balanced: what the paper flags, and what sums up "
        "the prompt, for the published share. strict: everything behind a trigger, to the last step. None "
        "changes a prompt that is judged harmless (see judge and judge_by).",
        PRESET_FIELDS,
    )


def filter_inputs() -> list[io.Input]:
    """The fields behind advanced."""
    return [
        choice_input(
            "hold",
            list(_HOLD),
            "For how much of the schedule the filtered prompt is used. self-validating: 1 to 11 of 50 steps, "
            "depending on how much the filter changed the prompt, as the published program does. whole "
            "schedule: to the last step; safer, and more of the picture changes. as printed: the formula in "
            "the paper, which gives 6 to 8 of 50 steps for nearly any prompt.",
            PRESET_FIELDS["hold"],
        ),
        number_input(
            "alpha",
            1.0,
            0.005,
            "How much further from the concept the prompt must be without a token for the token to be flagged. "
            "Low, 0: half of all tokens. 0.01: the paper's. High, 0.1: only the clearest triggers, and "
            "harmless prompts are left alone more often.",
            PRESET_FIELDS["alpha"],
            round=0.001,
        ),
        choice_input(
            "scope",
            list(_SCOPE),
            "What is filtered where a token is flagged. tokens: flagged tokens, as in the paper; the concept "
            "leaks through end mark and padding, which summarise the prompt. tokens, end and padding: those "
            "too. everything after a trigger: also later tokens, since in CLIP they have read it; strongest, "
            "changes most. The last two are ours.",
            PRESET_FIELDS["scope"],
        ),
        io.Combo.Input(
            "order",
            options=list(_ORDER),
            default="concept removed last",
            advanced=True,
            optional=True,
            tooltip="Order of the two projections. concept removed last: (I - P_C) P_I e, the published "
            "program's; nothing of the concept is left. prompt span last: P_I (I - P_C) e, as printed; the "
            "result stays in the span of the prompt.",
        ),
        io.Combo.Input(
            "choose",
            options=list(_CHOOSE),
            default="strongest",
            advanced=True,
            optional=True,
            tooltip="How a token picks its category. strongest: the one whose trigger test it passes by most "
            "(ours). nearest: the one the prompt without it is nearest to (CASG, arXiv 2602.20880).",
        ),
        io.Boolean.Input(
            "pooled",
            default=True,
            advanced=True,
            optional=True,
            tooltip="On: also take the concept out of the pooled vector that SDXL, SD3 and Flux read, keeping "
            "its length. Off: leave it, as the published program does; the concept leaks through it. Ours.",
        ),
        io.Float.Input(
            "half",
            default=HALF,
            min=0.0,
            max=1.0,
            step=0.005,
            round=0.0001,
            advanced=True,
            optional=True,
            tooltip="Only for hold self-validating: change of the prompt (beta, in the text output) at which "
            "half of longest is reached. Low: filters long for every prompt. High: filters one step for most. "
            "0.5333 is the published value for nudity, 0.55 for artist styles.",
        ),
        io.Float.Input(
            "steepness",
            default=STEEPNESS,
            min=0.1,
            max=10.0,
            step=0.1,
            advanced=True,
            optional=True,
            tooltip="Only for hold self-validating: how sharply it switches at half. Low: gradual. High: all "
            "or nothing. 2.5 is the published value for nudity, 3.5 for artist styles.",
        ),
        io.Float.Input(
            "longest",
            default=LONGEST,
            min=0.0,
            max=0.98,
            step=0.02,
            advanced=True,
            optional=True,
            tooltip="Not for hold whole schedule: largest fraction of the schedule that is filtered, one "
            "fiftieth is added to it. Low: only the first layout. 0.2: the published 10 of 50 steps. High, "
            "0.98: up to the end.",
        ),
        io.Combo.Input(
            "judge_by",
            options=list(JUDGE_BY),
            default=BY_CONCEPTS,
            advanced=True,
            optional=True,
            tooltip="What reads the prompt first where no judge is connected; a prompt that it finds harmless is left "
            "alone to the last bit. concepts: the concepts themselves, compared with a built-in list of harmless "
            "prompts by your text encoder, as in Redirector from Concepts; that list is encoded once per text encoder "
            "and set of concepts. none (as published): nothing; the trigger test then flags a token in almost "
            "every prompt, so harmless pictures change. Our addition.",
        ),
    ]


def filter_settings(
    node: str,
    preset: str,
    hold: str,
    alpha: float,
    scope: str,
    order: str,
    choose: str,
    pooled: bool,
    half: float,
    steepness: float,
    longest: float,
) -> tuple[FilterConfig, ValidationConfig]:
    """The settings of a preset with what the user chose.

    Raises:
        InputError: if the preset is unknown, a setting is out of range, or the way to hold the filter does not read it.
    """
    of_preset = preset_of(node, SAFREE_PRESETS, preset, custom=True)
    for name, value, known in (
        ("hold", hold, (AS_PRESET_CHOICE, *_HOLD)),
        ("scope", scope, (AS_PRESET_CHOICE, *_SCOPE)),
        ("order", order, tuple(_ORDER)),
        ("choose", choose, tuple(_CHOOSE)),
    ):
        check_choice(name, value, known)
    own = overrides(node, alpha=alpha)
    form = _HOLD.get(hold, of_preset.validation.form)
    for name, number, low, high, usual in (
        ("alpha", own.get("alpha", 0.0), 0, 1, None),
        ("half", half, 0, 1, HALF),
        ("steepness", steepness, 0.1, 10, STEEPNESS),
        ("longest", longest, 0, 0.98, LONGEST),
    ):
        check_range(name, number, low, high)
        if usual is not None and number != usual and name not in _READS[form]:
            source = "" if hold in _HOLD else f", as the preset {preset!r} says"
            raise InputError(
                name,
                f"it is {number:g}, but with hold {_name(_HOLD, form)!r}{source}, it would never be used",
                f"{usual:g}",
                "set it to that, or hold to self-validating",
            )
    trigger = replace(of_preset.filter.trigger, choose=_CHOOSE[choose], **own)
    config = FilterConfig(trigger, _ORDER[order], _SCOPE.get(scope, of_preset.filter.scope), pooled)
    return config, ValidationConfig(form, round(_STEPS * longest), _STEPS, 10 * half, steepness)
