"""Safety Concepts: what a method looks for."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from ..safeguidance.concepts.categories import FIELD_PRESETS, select_concepts
from ..safeguidance.errors import InputError, at_node
from ..safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS
from .search_words import SEARCH_WORDS
from .types import ConceptsType

_NODE, _WRITE = "Safety Concepts", "correct that line"
_PRESET_OF_INPUT = {category.name.replace("-", "_").replace(" ", "_"): category for category in FIELD_PRESETS}


def category_switches() -> list[io.Input]:
    """A switch for each category of the field."""
    return [
        io.Boolean.Input(
            name,
            default=True,
            tooltip=f"On: look for {category.name}, described as {category.text}. Off: not looked for. The "
            "category is one of the seven that the field measures with; the phrases are our choice.",
        )
        for name, category in _PRESET_OF_INPUT.items()
    ]


def chosen_categories(switches: Mapping[str, bool]) -> list[str]:
    """Names of the categories whose switch is on."""
    return [category.name for name, category in _PRESET_OF_INPUT.items() if switches.get(name)]


class SafetyConcepts(io.ComfyNode):
    """Choose what is unsafe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafetyConcepts",
            display_name="Safety Concepts",
            category="SafeGuidance",
            search_aliases=["unsafe concepts", "nsfw", "moderation", "harm categories", "blocklist", *SEARCH_WORDS],
            description=(
                "What a safety method looks for, as categories with short phrases. Switch categories on or off and add "
                "your own. Categories are never joined into one prompt, since joined ones weaken each other."
            ),
            inputs=[
                *category_switches(),
                io.Boolean.Input(
                    "testbed",
                    default=False,
                    advanced=True,
                    tooltip="On: the five categories of the pack's own test model instead of the seven above; only for "
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
        except InputError as error:
            return str(error.at(_NODE, _WRITE))
        return True

    @classmethod
    def execute(cls, testbed: bool = False, own: str = "", **switches: bool) -> io.NodeOutput:
        """Collect the categories.

        Raises:
            InputError: if nothing is chosen, or a line of ``own`` cannot be read.
        """
        names = chosen_categories(switches)
        if testbed:
            names = [category.name for category in TESTBED_PRESETS]
        with at_node(_NODE, _WRITE):
            concepts = select_concepts(names, own, ALL_PRESETS)
        if not concepts.categories:
            raise InputError(
                "own",
                "it is empty and every category is off",
                "at least one category",
                "switch one on or write a line of your own, `name: phrase, phrase`. To sample unguarded, remove the "
                "safety nodes",
                _NODE,
            )
        return io.NodeOutput(concepts)


NODES: list[type[io.ComfyNode]] = [SafetyConcepts]
