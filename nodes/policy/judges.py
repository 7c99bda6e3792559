"""What looks at finished pictures: an image classifier of the user's, or the evidence of an HGR."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ...safeguidance.errors import InputError
from ...safeguidance.policy.schema import Judge
from ...safeguidance.redirector.detection import DRAWS
from ...safeguidance.redirector.weights import load_hgr, read_card
from ...safeguidance.weight_files import WeightFileError
from ..detect_picture import picture_columns
from ..host import files, patcher
from ..host.encoding import ClipEncoder
from ..redirectors import ManagedRedirector
from ..weight_search import HGRS, weight_files
from .prediction import own_prediction
from .refusal import Refused

UNJUDGED = "This server cannot check this picture, so it is not shown."


class PictureJudge(Protocol):
    """Gives pictures their scores."""

    thresholds: Mapping[str, float]

    def scores(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        """Score per category of each picture ``[N, H, W, 3]`` in 0..1."""


def make_judge(judge: Judge) -> PictureJudge:
    """The judge of a level, ready to look.

    Raises:
        InputError: if its file is missing, another one, or cannot be used.
    """
    return Classifier(judge) if judge.kind == "classifier" else Evidence(judge)


class Classifier:
    """An image classifier in a folder as the library transformers writes it.

    Args:
        judge: of the policy.

    Raises:
        InputError: if it is missing, has another digest, or lacks a label that the policy names.
    """

    def __init__(self, judge: Judge) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        folder = Path(judge.file)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise InputError("judge.file", f"there is no {weights.name} in {folder}", "the folder of a classifier")
        if judge.sha256 and hashlib.sha256(weights.read_bytes()).hexdigest() != judge.sha256:
            raise InputError("judge.sha256", f"{weights} has another digest", "the very file that was checked")
        known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor = AutoImageProcessor.from_pretrained(folder, **known)
            self._model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, **known).eval()
        except Exception as error:
            raise InputError("judge.file", f"{folder} cannot be read ({error})", "a classifier of images") from error
        names = {str(name): int(number) for number, name in self._model.config.id2label.items()}
        missing = [label for label in judge.labels if label not in names]
        if missing:
            raise InputError("judge.labels", f"it names {missing[0]!r}", ", ".join(names))
        self._places = {label: (names[label], category) for label, category in judge.labels.items()}
        self._many = self._model.config.problem_type == "multi_label_classification"
        self.thresholds: Mapping[str, float] = {}

    @torch.inference_mode()
    def scores(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        """Score per category of each picture."""
        from PIL import Image

        found = []
        for picture in pictures:
            values = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            inputs = self._processor(images=Image.fromarray(values.numpy()), return_tensors="pt")
            logits = self._model(**inputs).logits[0].float()
            chances = logits.sigmoid() if self._many else logits.softmax(dim=0)
            row: dict[str, float] = {}
            for place, category in self._places.values():
                # labels of one category add up where they exclude each other
                before, chance = row.get(category, 0.0), float(chances[place])
                row[category] = max(before, chance) if self._many else min(before + chance, 1.0)
            found.append(row)
        return found


class Seen:
    """The last models of the server, by which a picture can be judged; nothing is kept alive for it."""

    def __init__(self) -> None:
        self._model: weakref.ref[Any] | None = None
        self._clip: weakref.ref[Any] | None = None
        self._vae: weakref.ref[Any] | None = None

    def sampled(self, model: Any, clip: Any) -> None:
        """A run was made."""
        self._model, self._clip = weakref.ref(model), None if clip is None else weakref.ref(clip)

    def decoded(self, vae: Any) -> None:
        """A picture was decoded."""
        self._vae = weakref.ref(vae)

    def parts(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE.

        Raises:
            Refused: if one of them is gone.
        """
        found = [None if one is None else one() for one in (self._model, self._clip, self._vae)]
        if any(one is None for one in found):
            raise Refused(UNJUDGED, "no model was used that a redirector could judge pictures with")
        return found[0], found[1], found[2]


SEEN = Seen()


class Evidence:
    """How much better an HGR's categories explain a picture than nothing and harmless counterparts do, as Detect Harm.

    Args:
        judge: of the policy.

    Raises:
        InputError: if its file is not there, or has another digest.
    """

    def __init__(self, judge: Judge) -> None:
        self._redirectors: dict[str, Any] = {}
        self.thresholds: Mapping[str, float] = {}
        named = [path for name, path in weight_files(HGRS.part) if judge.file in ("", name)]
        if judge.file and not named:
            allowed = f"a file in {files.user_folder()}"
            raise InputError("judge.file", f"{judge.file!r} is not there", allowed)
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in named} if judge.sha256 else {}
        self._files = [path for path in named if digests.get(path, "") == judge.sha256]
        if named and not self._files:
            raise InputError("judge.sha256", "no HGR that may be used has this digest", "that of the file")

    def scores(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        """Score per category of each picture; what speaks against a category is 0.

        Raises:
            Refused: if no HGR, or no model that was used, fits.
        """
        model, clip, vae = SEEN.parts()
        redirector, encoder = self._redirector(model), ClipEncoder(clip)
        with own_prediction(), torch.inference_mode():
            latents = vae.encode(pictures)
            shape, base = latents.shape[1:], encoder([""])
            judged = picture_columns(redirector, encoder, model, shape, [], base, DRAWS, 0, counterparts=True)
            # what is no number counts as harm
            rows = judged(latents).nan_to_num(nan=1.0).clamp(0, 1).tolist()
        return [dict(zip(redirector.categories, row, strict=True)) for row in rows]

    def _redirector(self, model: Any) -> Any:
        family = patcher.model_family(model)
        if family not in self._redirectors:
            for path in self._files:
                try:
                    _, card = read_card(path)
                except WeightFileError:
                    continue
                if card.base_model == family:
                    self._redirectors[family] = ManagedRedirector(load_hgr(path))
                    break
            else:
                raise Refused(UNJUDGED, f"no HGR for {family} is there to judge pictures with")
        return self._redirectors[family]


def frames_of(pictures: Any) -> torch.Tensor | None:
    """Pictures and frames of a tensor as ``[N, H, W, 3]``; None where it holds none that can be looked at."""
    if not isinstance(pictures, torch.Tensor) or pictures.ndim < 3:
        return None
    if pictures.ndim == 3:  # a mask
        pictures = pictures.unsqueeze(-1)
    channels = pictures.shape[-1]
    if channels not in (1, 3, 4):
        return None
    flat: torch.Tensor = pictures.reshape(-1, *pictures.shape[-3:])
    return flat.expand(*flat.shape[:-1], 3) if channels == 1 else flat[..., :3]


def alpha_of(pictures: torch.Tensor) -> Sequence[torch.Tensor]:
    """The transparency of pictures as pictures of their own; none where they have none."""
    if pictures.shape[-1] != 4:
        return ()
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    return (flat[..., 3:].expand(*flat.shape[:-1], 3),)
