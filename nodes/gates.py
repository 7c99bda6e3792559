"""Redirectors made of concepts, and the gates in them.

A gate is fitted on the pack's banks once for each text encoder, and kept in memory and on disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from ..safeguidance.concepts.categories import Concepts
from ..safeguidance.concepts.prompt_banks import BankText
from ..safeguidance.redirector.bank_gate import BankGate, fit_bank_gate, load_gate, save_gate
from ..safeguidance.redirector.from_concepts import ConceptRedirector, make_concept_redirector
from ..safeguidance.testbed.gate_texts import texts_for
from ..safeguidance.testbed.short_prompts import harmless_bank
from ..safeguidance.weight_files import WeightFileError
from .host import files
from .host import model as host_model
from .host.encoding import ClipEncoder, knows_words
from .host.text_encoders import encoder_digest, encoder_family
from .per_clip import PerClip

MOST_ON_CPU = 1000
"""Texts where the encoder runs on a CPU; elsewhere all of them."""
_KEPT: dict[str, BankGate] = {}
_BY_CLIP: PerClip[BankGate] = PerClip(4)
_MOST_KEPT = 4
_LOGGER = logging.getLogger(__name__)


def concept_redirector(
    clip: Any, concepts: Concepts, benign: Sequence[str] = (), sensitivity: float = 1.0
) -> ConceptRedirector:
    """The redirector that a CLIP and concepts give, with the gate that is fitted for them.

    Args:
        clip: the host's CLIP.
        concepts: what is looked for.
        benign: harmless prompts to leave alone; the built-in ones where there are none.
        sensitivity: divides the limits.

    Raises:
        InputError: if an input cannot be used, or the encoder gives values that are not finite.
        ValueError: if there are too few harmless prompts, or no category.
    """
    encoder = ClipEncoder(clip)
    return make_concept_redirector(
        concepts,
        encoder,
        benign or harmless_bank(concepts.names),
        encoder.span,
        sensitivity=sensitivity,
        bank=bank_gate(clip, concepts),
    )


def bank_gate(clip: Any, concepts: Concepts) -> BankGate | None:
    """The gate for a CLIP: from memory, from the user's folder, or fitted now, which takes a while and shows progress.

    Args:
        clip: the host's CLIP.
        concepts: what is looked for.

    Returns:
        The gate, or None where it knows none of the categories, or the encoder does not know everyday words, which the
        texts are made of.

    Raises:
        InputError: if the encoder gives values that are not finite.
    """
    most = MOST_ON_CPU if clip.patcher.load_device.type == "cpu" else None
    texts = texts_for(concepts.names, most)
    if not texts or not knows_words(clip):
        return None
    # by the CLIP first: a digest of its weights takes seconds
    return _BY_CLIP.get(clip, concepts, lambda: _gate_of(clip, texts))


def _gate_of(clip: Any, texts: list[BankText]) -> BankGate:
    # the family too: SD3 and SDXL may share their encoders' weights, but lay out the states in other ways
    about = f"{encoder_family(clip)} {encoder_digest(clip)} {_digest(texts)}"
    digest = hashlib.sha256(about.encode()).hexdigest()
    if digest not in _KEPT:
        while len(_KEPT) >= _MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[digest] = _from_disk(clip, digest) or _fitted(clip, texts, digest)
    return _KEPT[digest]


def _digest(texts: list[BankText]) -> str:
    return hashlib.sha256("\n".join(f"{t.text}\t{t.category}\t{t.theme}" for t in texts).encode()).hexdigest()


def _from_disk(clip: Any, digest: str) -> BankGate | None:
    path = files.user_file("gates", f"{encoder_family(clip)}-{digest[:16]}.safetensors")
    if not path.is_file():
        return None
    try:
        return load_gate(path, digest)
    except WeightFileError as error:
        # never used, and never in the way: it is made again from the encoder itself
        _LOGGER.warning("SafeGuidance: %s; it is made again", error)
        return None


def _fitted(clip: Any, texts: list[BankText], digest: str) -> BankGate:
    encoder = ClipEncoder(clip, keep=False)
    bar = host_model.progress(len(texts))
    gate = fit_bank_gate(encoder, encoder.span, texts, watch=lambda done, _: bar(done, None))
    path = files.user_file("gates", f"{encoder_family(clip)}-{digest[:16]}.safetensors")
    try:
        save_gate(path, gate, digest)
    except OSError as error:
        _LOGGER.warning("SafeGuidance: %s; it is made again when ComfyUI is started next", error)
    return gate
