"""What reads prompts: a trained Harmful Guidance Redirector from a file, or one made of concept texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..safeguidance.concepts.categories import Concepts
from ..safeguidance.conditioning import Conditioning
from ..safeguidance.errors import InputError, at_node
from ..safeguidance.redirector.hgr import TrainedRedirector
from ..safeguidance.redirector.interface import Proposal, Redirector
from ..safeguidance.redirector.text_weights import TextCard
from ..safeguidance.redirector.weights import KIND, HGRCard, load_hgr, read_card
from ..safeguidance.weight_files import Header, WeightFileError, read_header
from .gates import concept_redirector
from .host import files, patcher
from .host import model as host_model
from .host.encoding import check_clip
from .types import ConceptsType, RedirectorType

_LOGGER = logging.getLogger(__name__)
_LOAD, _MAKE = "Load HGR", "Redirector from Concepts"


class ManagedRedirector(TrainedRedirector):
    """A trained redirector whose network the host loads before each use and may unload afterwards.

    Args:
        trained: what was read from a file.
    """

    def __init__(self, trained: TrainedRedirector) -> None:
        super().__init__(
            trained.network, trained.base_model, trained.threshold, trained.kappa, trained.title, trained.base_hash
        )
        self._patcher = host_model.managed(trained.network)

    def propose(self, prompt: Conditioning, base: Conditioning) -> Proposal:
        """Read a prompt (see ``Redirector``)."""
        host_model.load(self._patcher)
        return super().propose(prompt, base)


def describe(path: Path) -> str:
    """The card of an HGR file in lines for people."""
    shape, card = read_card(path)
    return card_text(
        read_header(path, KIND),
        [
            ("file", path.name),
            ("for model family", card.base_model or "any with the same width"),
            ("context width", shape.context_width),
            ("categories", ", ".join(shape.categories)),
            ("noise-level buckets start at", ", ".join(f"{edge:g}" for edge in shape.edges)),
            ("pooled head", "yes" if shape.pooled_width else "no"),
            ("training target", f"{card.target}, kappa {card.kappa:g}"),
            *training_lines(card, "digest of the model", card.base_hash),
        ],
    )


def card_text(header: Header, lines: Sequence[tuple[str, Any]]) -> str:
    """A card in lines for people; whether the file is as it was saved comes last."""
    digest = "matches the contents" if header.has_digest else f"WARNING: this {header.without_digest}"
    return "\n".join(f"{name}: {value}" for name, value in [*lines, ("digest of the file", digest)])


def training_lines(card: HGRCard | TextCard, of: str, digest: str) -> list[tuple[str, Any]]:
    """What cards of trained redirectors have in common.

    Args:
        card: of a file.
        of: name of the digest of what it was trained on.
        digest: that digest, "" where it was not taken.
    """
    figures = card.training.get("figures", {})
    training = ", ".join(f"{key} {value}" for key, value in card.training.items() if key != "figures")
    return [
        (
            "calibrated threshold",
            f"{card.threshold:.3f} (at most {100 * card.false_positive_rate:g}% false positives on "
            f"{card.calibration_count} matched benign prompts)",
        ),
        ("data", card.data),
        ("rows per category", ", ".join(f"{key} {value}" for key, value in card.counts.items()) or "not recorded"),
        ("digest of the data", card.data_hash or "not recorded"),
        (of, digest or "not recorded"),
        ("licence", card.licence),
        ("training", training or "not recorded"),
        ("figures", ", ".join(f"{key} {value}" for key, value in figures.items()) or "not recorded"),
    ]


def check_family(redirector: Redirector, model: Any, field: str) -> str:
    """The family of a MODEL, if a redirector was made for it.

    Args:
        redirector: any; those made of texts fit every model.
        model: MODEL.
        field: input to name in the error.

    Raises:
        InputError: if it was made for another model family.
    """
    family, wanted = patcher.model_family(model), redirector.base_model
    if wanted and wanted != family:
        raise InputError(
            field,
            f"the redirector {redirector.title!r} was made for {wanted}, the model is {family}",
            "redirector and MODEL of one family",
            f"load an HGR for {family}, connect a MODEL of the family {wanted}, or use Redirector from Concepts",
        )
    return family


def check_model(redirector: Redirector, model: Any, field: str = "model") -> str:
    """Whether a redirector was trained on a MODEL: "" where it was or nothing is known, else what differs, in words.

    Args:
        redirector: any; those made of texts fit every model.
        model: MODEL.
        field: input to name in the error.

    Raises:
        InputError: if it was made for another model family.
    """
    family = check_family(redirector, model, field)
    expected = getattr(redirector, "base_hash", "")
    if not expected or (found := host_model.weights_digest(model)) == expected:
        return ""
    return (
        f"{redirector.title} was trained on other weights of the family {family} (digest {expected[:12]}, this model "
        f"has {found[:12]}: another checkpoint, LoRA or precision). Its threshold and figures hold for those; measure "
        "it here with Detect Harm, or train one for this model with Train HGR"
    )


def _find(name: str) -> Path:
    return files.find_weights(name, "hgr", "hgr_name", _LOAD, "use Redirector from Concepts, which needs no file")


class LoadHGR(io.ComfyNode):
    """Read an HGR file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_LoadHGR",
            display_name="Load HGR",
            category="SafeGuidance",
            search_aliases=[
                "nsfw",
                "safety",
                "moderation",
                "safe cfg",
                "harmful guidance redirector",
                "hgr",
                "safecfg",
            ],
            description=(
                "Loads a trained Harmful Guidance Redirector, the network of SafeCFG (arXiv 2412.16039): it reads the "
                "prompt and returns what the unconditional branch should hold, the harmful part of it. Files belong "
                "into models/safeguidance. Only safetensors files are read."
            ),
            inputs=[
                io.Combo.Input(
                    "hgr_name",
                    options=files.weight_names("hgr"),
                    tooltip="File in models/safeguidance, or one that ships with the pack. It must be made for the "
                    "model family and text encoder you sample with; the card output says which.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL you will sample with, with its LoRAs. Connected, the file is checked against "
                    "it: another family is refused, other weights of the same family are named in card and log.",
                ),
            ],
            outputs=[
                RedirectorType.Output(
                    "redirector", display_name="REDIRECTOR", tooltip="For SafeCFG Guider or SafeCFG (Model Patch)."
                ),
                io.String.Output(
                    "card",
                    display_name="card",
                    tooltip="What the file says about itself: model family, categories, threshold, data, licence.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, hgr_name: str | None = None, model: Any = None) -> bool | str:
        """Check name and header before anything runs; a linked name (None here) is checked when it runs."""
        if hgr_name is None:
            return True
        try:
            with named_file("hgr_name", _LOAD):
                read_card(_find(hgr_name))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, hgr_name: str | None = None, model: Any = None) -> str:
        """Changes when the file is replaced."""
        return files.weight_fingerprint(hgr_name)

    @classmethod
    def execute(cls, hgr_name: str, model: Any = None) -> io.NodeOutput:
        """Read the file, and compare it with a model.

        Raises:
            InputError: if it is missing, damaged, of another format or shape, or for another model family; the message
                says what to do.
        """
        path = _find(hgr_name)
        with named_file("hgr_name", _LOAD):
            redirector, card = ManagedRedirector(load_hgr(path)), describe(path)
        if model is not None:
            with at_node(_LOAD):
                differs = check_model(redirector, model)
            if differs:
                _LOGGER.warning("SafeGuidance, Load HGR: %s", differs)
            known = "the weights it was trained on" if redirector.base_hash else "of its family; no digest in the file"
            card += f"\nchecked against the model: {f'WARNING: {differs}' if differs else known}"
        return io.NodeOutput(redirector, card)


@contextmanager
def named_file(field: str, node: str) -> Iterator[None]:
    """Name node and input in errors of a weight file.

    Raises:
        InputError: in place of the error of the file.
    """
    try:
        yield
    except WeightFileError as error:
        raise InputError(field, f"{error.field}: {error.found}", error.allowed, error.next_step, node) from error


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
            InputError: if there are too few benign prompts, no CLIP, or an encoder that gives no token states.
        """
        check_clip(clip, _MAKE)
        lines = [line.strip() for line in benign.splitlines() if line.strip()]
        with at_node(_MAKE):
            redirector = concept_redirector(clip, concepts, lines, sensitivity)
        return io.NodeOutput(redirector, redirector.summary())


NODES: list[type[io.ComfyNode]] = [LoadHGR, RedirectorFromConcepts]
