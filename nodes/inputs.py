"""Presets over raw numbers: light, balanced, strict, and every number they set as a field of its own behind advanced.

In a graph a field is -1 (a choice: as preset), or is left out, where it follows the preset; whatever else it holds
wins over the preset and is never ignored, so a saved graph that has numbers keeps its meaning whatever the presets
become. The editor (``web/js/presets.js``) shows the preset's numbers in the fields that follow it, and sets the preset
to custom where one is typed; it reads them from what ``preset_input`` says, so there is one place for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from comfy_api.latest import io

from ..safeguidance.errors import InputError
from ..safeguidance.guidance.settings import Setting, with_values
from .types import ConceptsType, TraceType

AS_PRESET = -1.0
"""What a number says that takes the preset's value."""

AS_PRESET_CHOICE = "as preset"
"""What a choice says that takes the preset's value."""

BALANCED = "balanced"

CUSTOM = "custom"
"""The choice of numbers of one's own; what a graph leaves out is then as balanced."""

Config = TypeVar("Config")


def preset_input(
    presets: Mapping[str, Any], tooltip: str, fields: Mapping[str, Mapping[str, Any]] | None = None
) -> io.Input:
    """The choice of a preset.

    Args:
        presets: settings by name.
        tooltip: what they do.
        fields: input that a preset sets -> preset -> value; with none the choice is all there is.
    """
    if not fields:
        return io.Combo.Input("preset", options=list(presets), default=BALANCED, optional=True, tooltip=tooltip)
    values = {preset: {name: of_field[preset] for name, of_field in fields.items()} for preset in presets}
    return io.Combo.Input(
        "preset",
        options=[*presets, CUSTOM],
        default=BALANCED,
        optional=True,
        tooltip=f"{tooltip} The fields show its values; another one makes it custom.",
        extra_dict=for_editor(presets=values, custom=CUSTOM),
    )


def for_editor(**hints: Any) -> dict[str, Any]:
    """What ``web/js`` reads of an input, as the host's ``extra_dict``."""
    return {"safeguidance": hints}


def number_input(
    name: str, most: float, step: float, tooltip: str, values: Mapping[str, float], turns_off: bool = False, **more: Any
) -> io.Input:
    """A number that a preset sets.

    Args:
        name: of the input.
        most: its largest value; the smallest is 0.
        step: of the field.
        tooltip: what low and high do; what the presets say is added.
        values: preset -> value.
        turns_off: whether the method is off where this, and every other such number of it, is 0.
        more: further arguments of the input.
    """
    same = len(set(values.values())) == 1
    listed = ", ".join(f"{preset} {value:g}" for preset, value in values.items())
    listed = f"{next(iter(values.values())):g} in each" if same else listed
    return io.Float.Input(
        name,
        default=AS_PRESET,
        min=AS_PRESET,
        max=most,
        step=step,
        advanced=True,
        optional=True,
        tooltip=f"{tooltip} By preset: {listed}. Through the API, -1 or nothing: as the preset.",
        extra_dict=for_editor(turns_off=True) if turns_off else None,
        **more,
    )


def choice_input(name: str, options: Sequence[str], tooltip: str, values: Mapping[str, str]) -> io.Input:
    """A choice that a preset makes, with the same arguments as ``number_input``."""
    listed = "; ".join(f"{preset}: {value}" for preset, value in values.items())
    return io.Combo.Input(
        name,
        options=[AS_PRESET_CHOICE, *options],
        default=AS_PRESET_CHOICE,
        advanced=True,
        optional=True,
        tooltip=f"{tooltip} By preset: {listed}. Through the API, as preset or nothing: as the preset.",
    )


def threshold_input(tooltip: str) -> io.Input:
    """A threshold in place of the calibrated one; the editor shows the number once it is asked for.

    Args:
        tooltip: from what it is used, what the calibrated one is, and what low and high do.
    """
    return io.Float.Input(
        "threshold",
        default=-1.0,
        min=-1.0,
        max=1.0,
        step=0.01,
        advanced=True,
        optional=True,
        tooltip=tooltip,
        extra_dict=for_editor(unset=-1.0, start=0.5),
    )


def preset_of(node: str, presets: Mapping[str, Config], preset: str, custom: bool = False) -> Config:
    """The settings of a preset.

    Args:
        node: name of the node, for messages.
        presets: settings by name.
        preset: the chosen one.
        custom: whether numbers of one's own may be chosen; they start from ``balanced``.

    Raises:
        InputError: if there is none of this name.
    """
    if custom and preset == CUSTOM:
        return presets[BALANCED]
    if preset not in presets:
        known = [*presets, CUSTOM] if custom else presets
        raise InputError("preset", f"it is {preset!r}", ", ".join(known), "choose one of these", node)
    return presets[preset]


def overrides(node: str, **numbers: float) -> dict[str, float]:
    """The numbers that a user typed, without those left to the preset.

    Raises:
        InputError: if one is below 0 and not -1.
    """
    for name, value in numbers.items():
        if not value >= 0 and value != AS_PRESET:
            raise InputError(name, f"it is {value:g}", "0 and above, or -1 for what the preset says", "change it", node)
    return {name: value for name, value in numbers.items() if value != AS_PRESET}


def preset_note(preset: str, names: Sequence[str], own: Mapping[str, Any]) -> str:
    """The end of a message on settings that do not fit together: which of them are not the user's."""
    preset = BALANCED if preset == CUSTOM else preset
    left = [name for name in names if name not in own]
    return f"; the preset {preset!r} says: {', '.join(left)}" if left and own else ""


def preset_fields(settings: Sequence[Setting], presets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the presets say of a method's settings: input -> preset -> value."""
    return {
        setting.name: {name: setting.read(config) for name, config in presets.items()}
        for setting in settings
        if setting.by_preset
    }


def setting_input(setting: Setting, presets: Mapping[str, Any]) -> io.Input:
    """The input of a method's setting.

    Args:
        setting: its declaration.
        presets: settings by name; ``balanced`` has the default.
    """
    default = setting.read(presets[BALANCED])
    if setting.by_preset:
        values = {name: setting.read(config) for name, config in presets.items()}
        if setting.kind == "choice":
            return choice_input(setting.name, setting.choices, setting.tooltip, values)
        turns_off = setting.turns_off or setting.name == "strength"
        return number_input(setting.name, setting.high, setting.step, setting.tooltip, values, turns_off)
    common: dict[str, Any] = {"optional": True, "tooltip": setting.tooltip}
    if setting.kind == "lines":
        return io.String.Input(setting.name, default="\n".join(default), multiline=True, **common)
    common["advanced"] = True
    if setting.kind == "choice":
        return io.Combo.Input(setting.name, options=list(setting.choices), default=default, **common)
    if setting.kind == "int":
        return io.Int.Input(setting.name, default=default, min=int(setting.low), max=int(setting.high), **common)
    return io.Float.Input(setting.name, default=default, min=setting.low, max=setting.high, step=setting.step, **common)


def config_from(
    node: str, settings: Sequence[Setting], presets: Mapping[str, Config], preset: str, values: Mapping[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """A preset's settings with what the user typed.

    Args:
        node: name of the node, for messages.
        settings: declarations of the node's inputs.
        presets: settings by name.
        preset: the chosen one.
        values: values of the inputs by name; those that are missing are left to the preset.

    Returns:
        The settings, and what the user typed in place of the preset's values (with custom: in place of balanced's).

    Raises:
        InputError: if the preset is unknown, or a value is out of range.
    """
    of_preset = preset_of(node, presets, preset, custom=True)
    numbers = {s.name: values[s.name] for s in settings if s.by_preset and not s.choices and s.name in values}
    own: dict[str, Any] = overrides(node, **numbers)
    own |= {
        s.name: values[s.name]
        for s in settings
        if s.by_preset and s.choices and values.get(s.name, AS_PRESET_CHOICE) != AS_PRESET_CHOICE
    }
    rest = {s.name: _value(s, values[s.name]) for s in settings if not s.by_preset and s.name in values}
    # the editor sends every number of a custom preset, also those that nobody touched
    typed = {s.name: own[s.name] for s in settings if s.name in own and own[s.name] != s.read(of_preset)}
    try:
        return with_values(of_preset, tuple(settings), {**rest, **own}), typed if preset == CUSTOM else own
    except InputError as error:
        note = preset_note(preset, [s.name for s in settings if s.by_preset], own)
        raise InputError(error.field, error.found, error.allowed, f"change the named field{note}", node) from error


def _value(setting: Setting, value: Any) -> Any:
    if setting.kind == "lines":
        return tuple(line.strip() for line in str(value).splitlines() if line.strip())
    return value


def anchor_input() -> io.Input:
    """The anchor of directions, of a concept node."""
    return io.Combo.Input(
        "anchor",
        options=["negative", "empty"],
        default="negative",
        advanced=True,
        optional=True,
        tooltip="What directions start from. negative: the sampler's negative prompt, at no cost. empty: an empty "
        "prompt, as in the paper; one more evaluation in the steps that look at concepts; needed where your negative "
        "prompt itself names a concept, and over SafeCFG, whose base holds the harm. At cfg 1 it is always empty.",
    )


def trace_output() -> io.Output:
    """The TRACE output of a concept node."""
    return TraceType.Output(
        "trace",
        display_name="TRACE",
        tooltip="What the last run did: scores, live mask, decision, steps. For Safety Report.",
    )


def text_inputs() -> list[io.Input]:
    """CLIP and CONCEPTS of a concept node."""
    return [
        io.Clip.Input("clip", tooltip="The text encoder of the MODEL, which encodes the concepts."),
        ConceptsType.Input(
            "concepts",
            tooltip="What to look for, from Safety Concepts. Each category is one text of its own; every one costs an "
            "evaluation in the steps that look at all of them.",
        ),
    ]
