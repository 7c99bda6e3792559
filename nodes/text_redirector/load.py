"""Load Text Redirector: a redirector in text space from a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, at_node
from ...safeguidance.redirector.text_space import TextRedirector
from ...safeguidance.redirector.text_weights import TEXT_KIND, load_text_redirector, read_text_card
from ...safeguidance.weight_files import read_header
from ..host import files
from ..host import model as host_model
from ..host.text_encoders import encoder_digest, encoder_family
from ..redirectors import card_text, named_file, training_lines
from ..types import TextRedirectorType

_LOGGER = logging.getLogger(__name__)
NAME = "Load Text Redirector"


class ManagedTextRedirector(TextRedirector):
    """A text redirector whose network the host loads before each use and may unload afterwards.

    Args:
        trained: what was read from a file.
    """

    def __init__(self, trained: TextRedirector) -> None:
        super().__init__(trained.network, trained.encoder, trained.threshold, trained.title, trained.encoder_hash)
        self._patcher = host_model.managed(trained.network)

    def scores(self, prompt: Conditioning) -> Any:
        """Harmfulness per category (see ``TextRedirector``)."""
        host_model.load(self._patcher)
        return super().scores(prompt)

    def change(self, prompt: Conditioning) -> Conditioning:
        """What is added (see ``TextRedirector``)."""
        host_model.load(self._patcher)
        return super().change(prompt)


def describe(path: Path) -> str:
    """The card of a text redirector file in lines for people."""
    shape, card = read_text_card(path)
    return card_text(
        read_header(path, TEXT_KIND),
        [
            ("file", path.name),
            ("for text encoder", card.encoder),
            ("channels", f"{shape.context_width}, pooled {shape.pooled_width or 'left as it is'}"),
            ("categories", ", ".join(shape.categories)),
            *training_lines(card, "digest of the text encoder", card.encoder_hash),
        ],
    )


def check_clip_fits(redirector: TextRedirector, clip: Any) -> str:
    """Whether a text redirector was trained on a CLIP: "" where it was or nothing is known, else what differs.

    Args:
        redirector: any.
        clip: CLIP.

    Raises:
        InputError: if it was made for another family of text encoders.
    """
    family = encoder_family(clip)
    if redirector.encoder != family:
        raise InputError(
            "clip",
            f"the text redirector {redirector.title!r} was made for {redirector.encoder}, this CLIP is {family}",
            "redirector and CLIP of one family",
            f"load a file for {family}, or train one with Train Text Redirector",
        )
    expected = redirector.encoder_hash
    if not expected or (found := encoder_digest(clip)) == expected:
        return ""
    return (
        f"{redirector.title} was trained on other weights of the text encoder {family} (digest {expected[:12]}, this "
        f"CLIP has {found[:12]}: another file, LoRA, precision or layer). Its threshold and figures hold for those"
    )


class LoadTextRedirector(io.ComfyNode):
    """Read a text redirector file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_LoadTextRedirector",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "text redirector", "safe conditioning", "cfg 1"],
            description=(
                "Loads a text redirector: a trained network that moves a harmful prompt's conditioning to that of its "
                "safe counterpart. One file serves every model with the same text encoder. Files belong into "
                "models/safeguidance. Only safetensors files are read."
            ),
            inputs=[
                io.Combo.Input(
                    "file_name",
                    options=files.weight_names("text-redirector"),
                    tooltip="File in models/safeguidance, or one that ships with the pack. It must be made for the "
                    "text encoder you use; the card output says for which.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder you will use. Connected, the file is checked against it: another family "
                    "is refused, other weights of the same family are named in card and log.",
                ),
            ],
            outputs=[
                TextRedirectorType.Output(
                    "text_redirector", display_name="TEXT_REDIRECTOR", tooltip="For Safe Conditioning."
                ),
                io.String.Output(
                    "card",
                    display_name="card",
                    tooltip="What the file says about itself: text encoder, categories, threshold, data, licence.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file_name: str | None = None, clip: Any = None) -> bool | str:
        """Check name and header before anything runs; a linked name (None here) is checked when it runs."""
        if file_name is None:
            return True
        try:
            with named_file("file_name", NAME):
                read_text_card(_find(file_name))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file_name: str | None = None, clip: Any = None) -> str:
        """Changes when the file is replaced."""
        return files.weight_fingerprint(file_name)

    @classmethod
    def execute(cls, file_name: str, clip: Any = None) -> io.NodeOutput:
        """Read the file, and compare it with a text encoder.

        Raises:
            InputError: if it is missing, damaged, of another format or shape, or for another text encoder.
        """
        path = _find(file_name)
        with named_file("file_name", NAME):
            redirector, card = ManagedTextRedirector(load_text_redirector(path)), describe(path)
        if clip is not None:
            with at_node(NAME):
                differs = check_clip_fits(redirector, clip)
            if differs:
                _LOGGER.warning("SafeGuidance, %s: %s", NAME, differs)
            known = (
                "the weights it was trained on" if redirector.encoder_hash else "of its family; no digest in the file"
            )
            card += f"\nchecked against the CLIP: {f'WARNING: {differs}' if differs else known}"
        return io.NodeOutput(redirector, card)


def _find(name: str) -> Path:
    otherwise = "train one with Train Text Redirector"
    return files.find_weights(name, "text-redirector", "file_name", NAME, otherwise)


NODES: list[type[io.ComfyNode]] = [LoadTextRedirector]
