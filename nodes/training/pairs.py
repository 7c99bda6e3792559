"""The pairs that a training node trains on: from a prompt file, or made of categories and own phrases on the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import FIELD_PRESETS, parse_concepts
from ...safeguidance.errors import InputError
from ...safeguidance.prompts.banks import made_prompts
from ...safeguidance.prompts.files import PromptData, read_prompts
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS
from ...safeguidance.testbed.prompts import ROW_MAKERS
from ...safeguidance.training.align_data import Prompts
from ..concepts import chosen_categories
from ..host import files
from ..host.encoding import ClipEncoder, knows_words
from .train_run import readable

_MOST_BYTES = 4 * 2**30
"""Memory for encoded texts of the pack's own pairs; wide encoders take fewer of them."""
DATASET_TOOLTIP = (
    "Empty: the pairs are made of the categories and own phrases below. A name: a prompt file in the input folder or a "
    "folder below it, .csv or .jsonl, columns prompt, safe_prompt, category, split{more}, in their place."
)


def pair_inputs() -> list[io.Input]:
    """A switch for each category, own phrases, and the testbed's categories."""
    switches: list[io.Input] = [
        io.Boolean.Input(
            category.name.replace("-", "_").replace(" ", "_"),
            default=True,
            optional=True,
            tooltip=f"On: pairs of {category.name} are trained on ({category.text}). Off: none of them. Not read where "
            "dataset names a file.",
        )
        for category in FIELD_PRESETS
    ]
    return [
        *switches,
        io.String.Input(
            "own",
            default="",
            multiline=True,
            optional=True,
            tooltip="Your own categories, one per line as `name: phrase, phrase`; each gets 100 pairs with everyday "
            "things as counterparts. The name of a category above adds to it. Few and short phrases: precise. Many: "
            "broader. Empty: none. Not read where dataset names a file.",
        ),
        io.Boolean.Input(
            "testbed",
            default=False,
            optional=True,
            advanced=True,
            tooltip="On: the five categories of the pack's own test model instead of the seven above; only for Load "
            "Testbed. Off: the categories above.",
        ),
    ]


def pairs_for(clip: Any, dataset: str, own: str, testbed: bool, switches: Mapping[str, bool]) -> PromptData:
    """What to train on.

    Args:
        clip: the host's CLIP, which decides how many texts fit into memory.
        dataset: name of a prompt file; empty for pairs that are made here.
        own: own categories as ``parse_concepts`` reads them.
        testbed: the testbed's categories in place of the field's.
        switches: input of a category -> whether it is on; those left out are on.

    Raises:
        InputError: if the file cannot be read, a line of ``own`` neither, nothing is chosen, or the text encoder does
            not know the words of what is chosen.
    """
    if dataset.strip():
        return readable(read_prompts(files.input_file(dataset), tuple(ALL_PRESETS)))
    concepts = parse_concepts(own)
    if testbed:
        return made_prompts((), concepts.categories, TESTBED_PRESETS, ROW_MAKERS)
    if not knows_words(clip):
        raise InputError(
            "testbed",
            "it is off, and everyday words are all one unknown word to this text encoder, so it cannot tell the pairs "
            "of the categories apart",
            "on for the pack's test model, or a text encoder that knows everyday words",
            "switch it on for Load Testbed, or connect the text encoder of your model",
        )
    names = chosen_categories({**dict.fromkeys(_names(), True), **switches})
    return made_prompts(names, concepts.categories, most=most_texts(clip))


def unlabelled_for(clip: Any, redirector: Redirector) -> Prompts:
    """Harmful and harmless prompts without labels, in the categories that a redirector judges.

    Args:
        clip: see ``pairs_for``.
        redirector: names the categories.

    Raises:
        InputError: if none of them is one of the pack's.
    """
    names = redirector.categories
    testbed = tuple(c for c in TESTBED_PRESETS if {c.name, c.name.removeprefix("testbed_")} & set(names))
    known = [category.name for category in FIELD_PRESETS if category.name in names]
    if not testbed and not known:
        raise InputError(
            "prompts",
            f"it is empty, and none of the redirector's categories ({', '.join(names)}) is one of the pack's",
            "prompts of your own, or a redirector of the pack's categories",
            "write prompts, one a line, or name a prompt file in dataset",
        )
    makers = {category.name: ROW_MAKERS[category.name] for category in testbed}
    data = made_prompts(known, (), testbed, makers, None if testbed else most_texts(clip))
    texts = tuple(dict.fromkeys(text for e in data.examples for text in (e.prompt, e.safe)))
    return Prompts(data.path.name, texts, data.digest)


def most_texts(clip: Any) -> int:
    """Texts of this CLIP that fit into ``_MOST_BYTES`` once they are encoded; at least 100."""
    found = ClipEncoder(clip)([""])
    size = 4 * (found.tokens.numel() + (0 if found.pooled is None else found.pooled.numel()))
    return max(100, _MOST_BYTES // size)


def pairs_fingerprint(dataset: str | None) -> str:
    """Changes when the prompt file does; the same for pairs that are made of the node's own inputs."""
    return files.input_fingerprint(dataset) if dataset and dataset.strip() else "own pairs"


def _names() -> list[str]:
    return [category.name.replace("-", "_").replace(" ", "_") for category in FIELD_PRESETS]
