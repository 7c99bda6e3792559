"""Concept guidance for the cost measurement: the pack's nodes on a model with random weights.

Texts are random states, so a harmful prompt is made by giving the prompt the states of the first concept (its score is
then 1), and a harmless one by giving it others behind a threshold of 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import cost

SP_GUARD, FAMILY = "SafeGuidance_SPGuardMask", "SafeGuidance_ConceptGuidance"
PUBLISHED = {"every": 1, "settle": 0.0, "reference": "none", "end": 1.0}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        about: what it is, in words.
        node: node type that patches the model.
        concepts: how many categories.
        harmful: whether the prompt is the first of them.
        settings: settings of the node.
        apart: whether concepts take calls of their own; the result is the same.
    """

    about: str
    node: str = SP_GUARD
    concepts: int = 1
    harmful: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False


CASES: dict[str, Case] = {
    "sp_guard": Case("SP-Guard, one concept, harmful prompt"),
    "sp_guard_benign": Case("SP-Guard, one concept, closed gate", harmful=False),
    "sp_guard_7": Case("SP-Guard, seven concepts, harmful prompt", concepts=7),
    "sp_guard_7_benign": Case("SP-Guard, seven concepts, closed gate", concepts=7, harmful=False),
    "sp_guard_published": Case("SP-Guard as published, one concept, harmful prompt", settings=PUBLISHED),
    "sp_guard_published_apart": Case(
        "SP-Guard as published, one concept, harmful prompt, separate calls", settings=PUBLISHED, apart=True
    ),
    "sld_max": Case("SLD max, one concept", FAMILY, settings={"method": "SLD max"}),
    "sld_max_apart": Case("SLD max, one concept, separate calls", FAMILY, settings={"method": "SLD max"}, apart=True),
}


class RandomTexts:
    """Stands in for a text encoder: random states of a model's shape, the same for the same text."""

    def __init__(self, size: str = "sd15") -> None:
        self._size = size
        self._known: dict[str, Any] = {}

    def tokenize(self, text: str) -> str:
        """Return the text itself."""
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        """Return a CONDITIONING."""
        states: list[Any] = self._known.setdefault(text, cost.random_conditioning(100 + len(self._known), self._size))
        return states


def makers(name: str, cfg: float = 7.5, size: str = "sd15") -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes the stock and the guarded guider of a case, for `cost.measure`.

    Raises:
        CostError: Unknown case, or the pack is not loaded.
    """
    from safeguidance.headless import boot

    if name not in CASES:
        raise cost.CostError(f"Unknown method {name!r}. Allowed: safecfg, {', '.join(CASES)}.")
    case = CASES[name]
    if case.node not in boot.host_nodes().NODE_CLASS_MAPPINGS:
        raise cost.CostError(f"The node {case.node} is not in the loaded pack; measure without --no-pack.")
    node = boot.host_nodes().NODE_CLASS_MAPPINGS[case.node]
    core = importlib.import_module(f"{boot.pack_module().__name__}.safeguidance.concepts")
    looked_for = core.select_concepts((), "\n".join(f"c{k}: thing {k}" for k in range(case.concepts)))
    clip = RandomTexts(size)
    positive = clip.encode_from_tokens_scheduled("thing 0" if case.harmful else "a harmless prompt")
    negative = clip.encode_from_tokens_scheduled("")
    # random states cannot be judged
    measured = {"judge_by": "measured", "threshold": 0.0 if case.harmful else 1.0} if case.node == SP_GUARD else {}

    def stock(model: Any) -> Any:
        return cost.stock_guider(model, positive, negative, cfg)

    def guarded(model: Any) -> Any:
        if case.apart:
            model = model.clone()
            model.set_model_sampler_calc_cond_batch_function(_as_it_is)
        return stock(node.execute(model, clip, looked_for, **measured, **case.settings).result[0])

    return stock, guarded


def _as_it_is(args: Mapping[str, Any]) -> Any:
    """A batch function of another node that changes nothing; concepts then take a call of their own."""
    import comfy.samplers

    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )
