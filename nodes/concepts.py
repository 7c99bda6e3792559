"""Nodes for unsafe concepts: choosing them, and turning them into a redirector without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..safeguidance.concepts.categories import FIELD_PRESETS, Concepts, select_concepts
from ..safeguidance.conditioning import Conditioning
from ..safeguidance.redirector.from_concepts import make_concept_redirector
from ..safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS, benign_bank
from .redirectors import RedirectorType

ConceptsType = io.Custom("SAFEGUIDANCE_CONCEPTS")

_PRESET_OF_INPUT = {category.name.replace("-", "_").replace(" ", "_"): category for category in FIELD_PRESETS}


class SafetyConcepts(io.ComfyNode):
    """Choose what is unsafe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        switches: list[io.Input] = [
            io.Boolean.Input(
                name,
                default=True,
                tooltip=f"On: look for {category.name}, described as {category.text}. Off: not looked for. The "
                "category is one of the seven that the field measures with; the phrases are our choice.",
            )
            for name, category in _PRESET_OF_INPUT.items()
        ]
        return io.Schema(
            node_id="SafeGuidance_SafetyConcepts",
            display_name="Safety Concepts",
            category="SafeGuidance",
            search_aliases=["unsafe concepts", "nsfw", "safety", "moderation", "harm categories", "blocklist"],
            description=(
                "What a safety method looks for, as categories with short phrases. Switch categories on or off and add "
                "your own. Categories are never joined into one prompt, since joined ones weaken each other."
            ),
            inputs=[
                *switches,
                io.Boolean.Input(
                    "testbed",
                    default=False,
                    advanced=True,
                    tooltip="On: the four categories of the pack's own test model instead of the seven above; only for "
                    "Load Testbed. Off: the categories above. Our addition.",
                ),
                io.String.Input(
                    "own",
                    default="",
                    multiline=True,
                    tooltip="Your own categories, one per line as `name: phrase, phrase`. The name of a category above "
                    "adds phrases to it. Few and short phrases: precise. Many or long ones: broader, and more harmless "
                    "prompts come close. Empty: none. Lines that start with # are skipped.",
                ),
            ],
            outputs=[
                ConceptsType.Output(
                    "concepts",
                    display_name="CONCEPTS",
                    tooltip="For Redirector from Concepts and the SAFREE, SP-Guard and Concept Guidance nodes.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, own: str | None = None) -> bool | str:
        """Check own lines before anything runs; a linked text (None here) is checked when it runs."""
        try:
            select_concepts((), own or "")
        except ValueError as error:
            return f"Safety Concepts, own: {error}"
        return True

    @classmethod
    def execute(cls, testbed: bool = False, own: str = "", **switches: bool) -> io.NodeOutput:
        """Collect the categories.

        Raises:
            ValueError: if nothing is chosen, or a line of ``own`` can not be read.
        """
        names = [category.name for name, category in _PRESET_OF_INPUT.items() if switches.get(name)]
        if testbed:
            names = [category.name for category in TESTBED_PRESETS]
        try:
            concepts = select_concepts(names, own, ALL_PRESETS)
        except ValueError as error:
            raise ValueError(f"Safety Concepts, own: {error}") from error
        if not concepts.categories:
            raise ValueError(
                "Safety Concepts, own: it is empty and every category is off; at least one category is needed; switch "
                "one on or write a line of your own, `name: phrase, phrase`. "
                "To sample unguarded, remove the safety nodes"
            )
        return io.NodeOutput(concepts)


class ClipEncoder:
    """A CLIP as the encoder that concepts are built with; every text is encoded once.

    Args:
        clip: the host's CLIP.
    """

    def __init__(self, clip: Any) -> None:
        self._clip = clip
        self._known: dict[str, tuple[Conditioning, tuple[int, int]]] = {}
        self._marks = {number for row in _rows(clip.tokenize("")).values() for number in row if isinstance(number, int)}

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts, one row each, brought to one length by repeating last states."""
        parts = [self._look_up(text)[0] for text in texts]
        length = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat(
            [
                torch.cat([part.tokens, part.tokens[:, -1:].expand(-1, length - part.tokens.shape[1], -1)], dim=1)
                for part in parts
            ]
        )
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(tokens, torch.cat(pooled) if len(pooled) == len(parts) else None)

    def span(self, text: str) -> tuple[int, int]:
        """Where a text's own tokens and the end mark lie in its states."""
        return self._look_up(text)[1]

    def _look_up(self, text: str) -> tuple[Conditioning, tuple[int, int]]:
        if text not in self._known:
            tokens = self._clip.tokenize(text)
            states, extra = self._clip.encode_from_tokens_scheduled(tokens)[0][:2]
            pooled = extra.get("pooled_output")
            found = Conditioning(states.float().cpu(), None if pooled is None else pooled.float().cpu())
            self._known[text] = found, self._span(_rows(tokens), states.shape[1])
        return self._known[text]

    def _span(self, rows: dict[str, list[Any]], length: int) -> tuple[int, int]:
        # Where several encoders work side by side (SDXL, SD3) the first one's tokens come first; where one of them
        # gives the states alone (Flux), it is the one of their length.
        row = next((row for row in rows.values() if len(row) == length), next(iter(rows.values())))
        own = [place for place, number in enumerate(row) if not (isinstance(number, int) and number in self._marks)]
        return (own[0], min(own[-1] + 2, length)) if own else (0, length)


def _rows(tokens: dict[str, Any]) -> dict[str, list[Any]]:
    """Token numbers per encoder, chunks in a row."""
    return {name: [entry[0] for chunk in chunks for entry in chunk] for name, chunks in tokens.items()}


class RedirectorFromConcepts(io.ComfyNode):
    """A redirector made of concept texts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_RedirectorFromConcepts",
            display_name="Redirector from Concepts (no training)",
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "moderation", "gated negative prompt", "training-free", "safecfg"],
            description=(
                "A redirector without training and without weights: a negative prompt per category that switches "
                "itself on only where the prompt comes close to the category, judged by your text encoder and a list "
                "of harmless prompts. A stand-in for a trained HGR of SafeCFG (arXiv 2412.16039), of our own design: "
                "weaker, but it works with any model. Costs no extra model evaluation."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the MODEL you sample with."),
                ConceptsType.Input("concepts", tooltip="What to look for, from Safety Concepts."),
                io.Float.Input(
                    "sensitivity",
                    default=1.0,
                    min=0.25,
                    max=4.0,
                    step=0.05,
                    tooltip="How near a prompt must come to a category. Low, 0.25: only prompts that are very close; "
                    "more harm passes. 1: as calibrated on the harmless prompts. High, up to 4: acts early, harmless "
                    "prompts are changed too. Our design.",
                ),
                io.String.Input(
                    "benign",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Harmless prompts, one per line, that must be left alone; ideally what your users write. "
                    "Few (at least 8): a rough limit. 100 or more: the limit is the measured 1% false positives. "
                    "Empty: a built-in list of everyday prompts (for the testbed's categories, its own captions).",
                ),
            ],
            outputs=[
                RedirectorType.Output(
                    "redirector", display_name="REDIRECTOR", tooltip="For SafeCFG Guider or SafeCFG (Model Patch)."
                ),
                io.String.Output(
                    "summary", display_name="summary", tooltip="Categories, calibration and limits, in words."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, concepts: Concepts, sensitivity: float = 1.0, benign: str = "") -> io.NodeOutput:
        """Build the redirector.

        Raises:
            ValueError: if there are too few benign prompts, no CLIP, or an encoder that gives no token states.
        """
        node = "Redirector from Concepts"
        if clip is None:
            raise ValueError(
                f"{node}, clip: the input is empty; the loaded checkpoint has no text encoder; load one with Load CLIP"
            )
        lines = [line.strip() for line in benign.splitlines() if line.strip()]
        encoder = ClipEncoder(clip)
        try:
            redirector = make_concept_redirector(
                concepts, encoder, lines or benign_bank(concepts.names), encoder.span, sensitivity=sensitivity
            )
        except ValueError as error:
            raise ValueError(f"{node}: {error}") from error
        return io.NodeOutput(redirector, redirector.summary())


NODES: list[type[io.ComfyNode]] = [SafetyConcepts, RedirectorFromConcepts]
