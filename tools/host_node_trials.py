"""Where a node of the host is tried beside ours: before and after a patch of the MODEL, on the prompt, the negative."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safeguidance.headless.definitions import InputSpec, input_specs

SAFECFG, GUIDER, SP_GUARD, SAFREE, BOTH = (
    "SafeCFG",
    "SafeCFG Guider",
    "SP-Guard",
    "SAFREE",
    "SafeCFG beside SAFREE",
)
"""Methods: SafeCFG as patch of the MODEL and as guider, SP-Guard as patch, the filter of the prompt, and SafeCFG on a
prompt joined with a filtered text."""
PROMPT, NEGATIVE = "on the prompt", "on the negative"
BEFORE, AFTER = "before", "after"
ANY = ("COMFY_MATCHTYPE_V3", "*")


@dataclass(frozen=True)
class Trial:
    """One node of the host at one place.

    Attributes:
        node: Node id.
        kind: Its class in tools/data/host_nodes.json.
        place: Where it stands, in words; the key of its outcome.
        slot: Input our MODEL or the prompt goes to; empty where there is no choice.
        inputs: Values by name; "@TYPE" stands for the source of a type.
        guided: Whether SafeCFG Guider is tried as well.
    """

    node: str
    kind: str
    place: str
    slot: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False

    @property
    def joined(self) -> bool:
        """Whether the node joins the prompt with another text."""
        return ", as " in self.place

    @property
    def methods(self) -> tuple[str, ...]:
        """Our methods that are tried here."""
        # In an order in which no node of ours is in two graphs that follow one another.
        found = (SAFECFG, GUIDER, SP_GUARD) if self.guided else (SAFECFG, SP_GUARD)
        if self.kind in CONDITIONING_KINDS and not self.place.startswith(NEGATIVE):
            return (*found, BOTH, SAFREE) if self.joined else (*found, SAFREE)
        return found


MODEL_KINDS = ("patch", "cfg", "merge", "carry")
TEXT_KINDS = ("conditioning", "region", "hooks")
CONDITIONING_KINDS = (*TEXT_KINDS, "reference")
SAMPLING_KINDS = ("sampler", "sigmas", "noise")
TRIED = (*MODEL_KINDS, "guider", "encode", *CONDITIONING_KINDS, *SAMPLING_KINDS, "operation")


def places(node: str, entry: Mapping[str, Any], definition: Mapping[str, Any]) -> list[Trial]:
    """Return where a node is tried: before and after our patch of the MODEL, on the prompt, on the negative.

    Args:
        node: Node id.
        entry: Its entry in tools/data/host_nodes.json.
        definition: Its entry in /object_info.
    """
    kind = entry["class"]
    if kind not in TRIED or entry.get("why") or entry.get("like"):
        return []
    found = []
    for variant, more in {"": {}, **entry.get("variants", {})}.items():
        inputs = {**entry.get("inputs", {}), **more}
        ending = f"; {variant}" if variant else ""
        for place, slot in _places(kind, entry, definition, inputs):
            found.append(Trial(node, kind, place + ending, slot, inputs, _guided(kind, place, definition)))
    return found


def _guided(kind: str, place: str, definition: Mapping[str, Any]) -> bool:
    """Whether SafeCFG Guider is tried as well: before it a node that changes guidance, behind it every sampling."""
    if kind == "sampler" and "LATENT" in (definition.get("output") or []):
        return "GUIDER" in json.dumps(definition.get("input"))
    return kind in SAMPLING_KINDS or (kind in ("cfg", "operation") and place == BEFORE)


def _places(
    kind: str, entry: Mapping[str, Any], definition: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    specs = input_specs(definition, inputs)
    if kind in MODEL_KINDS or kind == "guider":
        models = entry.get("slots") or [spec.name for spec in specs if is_a(spec, "MODEL", kind)]
        if kind != "guider":
            yield BEFORE, ""
        for name in models:
            yield (f"{AFTER}, as {name}" if len(models) > 1 else AFTER), name
        if len(models) > 1 and kind == "guider":
            yield f"{AFTER}, as all", "*"
    elif kind in SAMPLING_KINDS:
        yield AFTER, ""
    elif kind == "operation":
        yield BEFORE, ""
        yield AFTER, ""
    elif kind in ("encode", "hooks"):
        yield PROMPT, ""
        if kind == "encode" and not _pair(definition):
            yield NEGATIVE, ""
    else:
        slots = entry.get("slots") or [
            spec.name for spec in specs if spec.type == "CONDITIONING" and not is_negative(spec.name)
        ]
        for name in slots:
            yield (f"{PROMPT}, as {name}" if len(slots) > 1 else PROMPT), name
        if not _pair(definition):
            for name in slots:
                yield (f"{NEGATIVE}, as {name}" if len(slots) > 1 else NEGATIVE), name


def is_a(spec: InputSpec, kind: str, of_class: str) -> bool:
    """Whether an input takes a type; one for any type counts in nodes that hand on whatever they are given."""
    return spec.type == kind or (of_class == "carry" and spec.type in ANY)


def _pair(definition: Mapping[str, Any]) -> bool:
    return list(definition.get("output") or []).count("CONDITIONING") > 1


def is_negative(name: str) -> bool:
    """Whether an input by this name takes a negative conditioning."""
    return "neg" in name.lower() or name.lower().startswith(("uncond", "empty"))
