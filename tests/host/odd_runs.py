"""Odd prompts through the nodes: every one gets an outcome, from runs of many prompts at once where that can be."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from safeguidance.guidance.registry import CHOICES, METHODS
from safeguidance.testbed.latents import LATENT_CHANNELS
from tests.host.safecfg_graphs import encoded, ksample, part, world
from tests.odd_prompts import OddPrompt, odd_prompts

PROMPTS = odd_prompts(per_kind=10)
REDIRECTORS = ("HGR", "from concepts")
JUDGES = [*(f"SafeCFG, {name}" for name in REDIRECTORS), *(m.title for m in METHODS.values() if m.patch_node)]
"""Methods that leave harmless prompts alone."""
OTHERS = list(CHOICES)
"""Published forms of methods that act on every prompt."""
_SHAPE = (LATENT_CHANNELS, 4, 4)
_TOGETHER = 64
# at more, the host evaluates prompt and negative in calls of their own, and rounding depends on the calls
_PADDED = 4


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt.

    Args:
        prompt: the prompt.
        refused: why it was refused; "" where it was not.
        acted: whether it was changed.
        score: the largest harm score.
        finite: whether everything that came out is finite.
        same: whether it is what comes out without the pack, bit for bit.
        words: what the report says; of a run of many prompts, of all of them.
    """

    prompt: OddPrompt
    refused: str = ""
    acted: bool = False
    score: float = 0.0
    finite: bool = True
    same: bool = True
    words: str = ""


@cache
def conditionings() -> dict[str, Any]:
    """Every prompt through the host's tokenizer and encoder, by its text; those that the host refuses are missing."""
    found = {}
    for prompt in PROMPTS:
        try:
            found[prompt.text] = encoded(prompt.text)
        except RecursionError:
            assert prompt.text.count("(") > 900, prompt
    return found


def drawable() -> list[OddPrompt]:
    """The prompts that the host encodes."""
    return [prompt for prompt in PROMPTS if prompt.text in conditionings()]


def states(prompt: OddPrompt) -> torch.Tensor:
    """Token states of a prompt, ``[1, L, D]``."""
    found: torch.Tensor = conditionings()[prompt.text][0][0]
    return found


@cache
def computes(prompt: OddPrompt) -> bool:
    """Whether a model can compute with the states of a prompt: they are finite, and so are their squares."""
    return prompt.text in conditionings() and bool(torch.isfinite(states(prompt).square().sum()))


@cache
def is_empty(prompt: OddPrompt) -> bool:
    """Whether nothing is left of a prompt after tokenizing."""
    clip = world()[1]
    return prompt.text in conditionings() and repr(clip.tokenize(prompt.text)) == repr(clip.tokenize(""))


# ---- methods ----


@cache
def concepts(count: int | None = None) -> Any:
    """The testbed's categories, or the first ones."""
    return part("safeguidance.concepts").Concepts(part("safeguidance.testbed.concepts").TESTBED_PRESETS[:count])


@cache
def redirector(name: str) -> Any:
    """A redirector as a node gives it: the shipped ``HGR``, or one ``from concepts``."""
    nodes = part("nodes.redirectors")
    if name == "HGR":
        return nodes.LoadHGR.execute("testbed-hgr.safetensors").args[0]
    return nodes.RedirectorFromConcepts.execute(world()[1], concepts()).args[0]


def guarded(name: str) -> tuple[Any, Any, str]:
    """The MODEL of a method as its node makes it by default, its trace, and the node's name."""
    model, clip = world()[:2]
    if name.startswith("SafeCFG"):
        node = part("nodes.safecfg.node").SafeCFGPatch
        return (*node.execute(model, redirector(name.split(", ")[1])).args, "SafeCFG (Model Patch)")
    if name in CHOICES:
        node = part("nodes.concept_guidance.concept_guidance").ConceptGuidance
        return (*node.execute(model, clip, concepts(2), name).args, "Concept Guidance")
    method = next(m for m in METHODS.values() if m.title == name)
    node = part("nodes.concept_guidance.factory").PATCH_NODES[method.name]
    assert method.patch_node is not None
    return (*node.execute(model, clip, concepts(2)).args, method.patch_node[1])


# ---- runs ----


def drawn(model: Any, prompts: Sequence[OddPrompt], steps: int) -> torch.Tensor:
    """Pictures of prompts whose states have one length, in one run."""
    conds = [conditionings()[prompt.text][0] for prompt in prompts]
    positive = [[torch.cat([tokens for tokens, _ in conds]), {"pooled_output": None}]]
    latent = {"samples": torch.zeros(len(prompts), *_SHAPE)}
    return ksample(model, positive, encoded(""), steps=steps, latent=latent)


@cache
def plain(prompts: tuple[OddPrompt, ...], steps: int) -> torch.Tensor:
    """What plain CFG makes of them."""
    return drawn(world()[0], prompts, steps)


def batches(prompts: Sequence[OddPrompt]) -> Iterator[tuple[OddPrompt, ...]]:
    """Prompts whose states have one length; the very long ones and those that are not finite, each by itself."""
    groups: dict[Any, list[OddPrompt]] = defaultdict(list)
    shortest = encoded("")[0][0].shape[1]
    for prompt in prompts:
        length = states(prompt).shape[1]
        groups[length if computes(prompt) and length <= _PADDED * shortest else prompt].append(prompt)
    for some in groups.values():
        for first in range(0, len(some), _TOGETHER):
            yield tuple(some[first : first + _TOGETHER])


def outcomes(name: str, prompts: Sequence[OddPrompt], steps: int, alone: bool = False) -> list[Outcome]:
    """What becomes of prompts under a method.

    Args:
        name: the method.
        prompts: what to draw.
        steps: of each run.
        alone: one run a prompt.
    """
    found: list[Outcome] = []
    for some in [(prompt,) for prompt in prompts] if alone else list(batches(prompts)):
        model, trace, node = guarded(name)
        try:
            pictures = drawn(model, some, steps)
        except Exception as error:  # all kinds, which `sentence` tells apart
            if len(some) > 1:  # one of them is refused; which one shows alone
                found += outcomes(name, some, steps, alone=True)
            else:
                found.append(Outcome(some[0], sentence(error, node), words=trace.run.decision))
            continue
        expected = plain(some, steps)
        for row, prompt in enumerate(some):
            acted = any(step.samples[row] for step in trace.run.steps if step.samples)
            score = max(trace.run.scores[row]) if trace.run.scores else 0.0
            finite, same = bool(torch.isfinite(pictures[row]).all()), same_bits(pictures[row], expected[row])
            found.append(Outcome(prompt, "", acted, score, finite, same, trace.run.decision))
    return found


def same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two float32 tensors are the same, values that are no numbers among them; or there is none."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.contiguous().view(torch.int32).equal(other.contiguous().view(torch.int32))


def sentence(error: Exception, node: str) -> str:
    """The message of a refusal, which must be one sentence that names node and field and says what is allowed.

    Raises:
        AssertionError: if it is not.
    """
    said = str(error)
    if type(error).__name__ != "InputError":
        raise AssertionError(f"{type(error).__name__}: {said}") from error
    assert re.fullmatch(rf"{re.escape(node)}, \w+: [^\n]+; allowed: [^\n]+", said), said
    assert len(said) < 500, said
    return said


def wrong(found: Sequence[Outcome], test: Callable[[Outcome], bool]) -> list[str]:
    """The first outcomes that a test finds wrong, as a message shows them."""
    hits = [one for one in found if test(one)]
    return [ascii((one.prompt.kind, one.prompt.text[:80], one.refused or one.words)) for one in hits[:8]]


def opened(found: Sequence[Outcome]) -> tuple[float, str]:
    """Share of the harmless prompts that open a gate, and the same in words, with the share of harmful ones missed."""
    harmless = [one for one in found if not one.prompt.harmful and not one.refused]
    harmful = [one for one in found if one.prompt.harmful and not one.refused]
    hits = [one for one in harmless if one.acted]
    missed = sum(not one.acted for one in harmful)
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(one.prompt.kind for one in hits).most_common())
    share = len(hits) / len(harmless)
    return share, (
        f"{len(hits)} of {len(harmless)} harmless odd prompts open the gate ({share:.1%}): {kinds}; "
        f"{missed} of {len(harmful)} harmful ones do not"
    )
