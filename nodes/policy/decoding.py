"""Gate 3: every picture and frame is judged where it is born, and again where it leaves, whatever was done to it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.policy.decision import Decision, decide, worst
from ...safeguidance.policy.schema import Level
from .judges import SEEN, UNJUDGED, PictureJudge, alpha_of, frames_of, make_judge
from .loaded import check_node
from .notice import notice
from .record import Record
from .refusal import Refused
from .sampling import is_blank
from .settings import check_settings
from .state import PROMPT, Armed, Job


class Pictures:
    """Judges pictures.

    Args:
        armed: the server.
        record: writes down.

    Raises:
        InputError: if a judge of the policy cannot be used.
    """

    def __init__(self, armed: Armed, record: Record) -> None:
        self._armed, self._record = armed, record
        self._judges: dict[str, PictureJudge] = {
            name: make_judge(level.judge) for name, level in armed.policy.levels.items() if level.judge is not None
        }

    def judges(self, level: Level) -> bool:
        """Whether anything looks at the pictures of a level."""
        return level.name in self._judges

    def born(self, pictures: Any, samples: Any, job: Job) -> Any:
        """Pictures that were decoded: as they are, or notices in their place.

        Raises:
            Refused: if one of them is refused, or cannot be judged.
        """
        if job.replaced or is_blank(samples):
            return notice(pictures, job.level.message) if isinstance(pictures, torch.Tensor) else pictures
        return self.judged(pictures, job)

    def judged(self, pictures: Any, job: Job) -> Any:
        """Pictures after the judge of the user's level looked at each of them.

        Raises:
            Refused: if one of them is refused, or cannot be judged.
        """
        judge = self._judges.get(job.level.name)
        if judge is None or not isinstance(pictures, torch.Tensor):
            return pictures
        try:
            decisions, scores = self._look(judge, pictures, job)
        except Refused as refused:
            self._record.stage(job, "refuse", "picture", refused.reason)
            raise
        except Exception as error:
            self._record.stage(job, "refuse", "picture", f"{type(error).__name__}: {error}")
            raise Refused(UNJUDGED, f"{type(error).__name__}: {error}") from error
        final = worst(decisions)
        self._record.picture(job, final, scores)
        if final.action == "refuse":
            raise Refused(final.message, f"{final.category} in the picture", "", final)
        bad = [decision.action == "replace" for decision in decisions]
        if not any(bad):
            return pictures
        out = pictures.clone()
        flat = out.reshape(-1, *out.shape[-3:]) if out.ndim > 3 else out.unsqueeze(-1)
        for number, wrong in enumerate(bad):
            if wrong or out.ndim > 4:  # a film with one such frame is replaced as a whole
                flat[number] = notice(flat[number], job.level.message)
        return out

    def looks_harmless(self, pictures: torch.Tensor, job: Job) -> bool:
        """Whether the judge of a level would let pictures pass; nothing is written down."""
        judge = self._judges.get(job.level.name)
        return judge is not None and worst(self._look(judge, pictures, job)[0]).action == "pass"

    def _look(self, judge: PictureJudge, pictures: torch.Tensor, job: Job) -> tuple[list[Decision], dict[str, float]]:
        frames = frames_of(pictures)
        if frames is None:
            raise Refused(UNJUDGED, f"a picture of the shape {list(pictures.shape)} cannot be judged")
        if not len(frames):
            return [Decision("pass", stage="picture")], {}
        largest: dict[str, float] = {}
        rows = [judge.scores(frames), *(judge.scores(layer) for layer in alpha_of(pictures))]
        decisions = []
        for found in zip(*rows, strict=True):
            for row in found:
                largest |= {name: max(score, largest.get(name, 0.0)) for name, score in row.items()}
            decisions.append(worst(decide(job.level, row, judge.thresholds, "picture") for row in found))
        return decisions, largest

    def leaving(self, values: Mapping[str, Any], job: Job) -> dict[str, Any]:
        """What an output node is given, after every picture in it was judged.

        Raises:
            Refused: if one of them is refused, or cannot be judged.
        """
        return {name: [self._one(value, job) for value in found] for name, found in values.items()}

    def _one(self, value: Any, job: Job) -> Any:
        if isinstance(value, torch.Tensor):
            return self.judged(value, job)
        if isinstance(value, Mapping) and "samples" in value:
            raise Refused(UNJUDGED, "a latent would leave the server without being judged")
        if isinstance(value, (list, tuple)):
            for part in value:
                if self._one(part, job) is not part:
                    raise Refused(UNJUDGED, "a picture inside a list would have to be replaced")
            return value
        if hasattr(value, "get_components"):
            images = value.get_components().images
            if self.judged(images, job) is not images:
                raise Refused(job.level.message, "a film would have to be replaced")
        return value


def gate(armed: Armed, pictures: Pictures) -> None:
    """Put the gate behind every decoding of the host."""
    import comfy.sd

    def decodes(before: Any) -> Any:
        def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
            job = armed.job()
            out = before(self, *args, **kwargs)
            SEEN.decoded(self)
            return pictures.born(out, next(iter((*args, *kwargs.values())), None), job)

        return decode

    armed.replaced.put(comfy.sd.VAE, "decode", decodes)
    armed.replaced.put(comfy.sd.VAE, "decode_tiled", decodes)


def gate_outputs(armed: Armed, pictures: Pictures, record: Record) -> None:
    """Put the gate before every node that shows or saves, and note whose files it made."""
    import execution

    checks = armed.policy.loaded != "allow"

    def executes(before: Any) -> Any:
        async def get_output_data(
            prompt_id: Any, unique_id: Any, obj: Any, values: Any, *args: Any, **kwargs: Any
        ) -> Any:
            job, began = armed.job_of(prompt_id), time.time()
            mark = PROMPT.set(str(prompt_id))
            try:
                armed.replaced.check()
                shows = _shows(obj)
                check_node(armed, type(obj))  # those of expanded subgraphs too
                check_settings(type(obj), values)
                if checks and shows and pictures.judges(job.level):
                    values = pictures.leaving(values, job)
                out = await before(prompt_id, unique_id, obj, values, *args, **kwargs)
                if checks and not shows and out[1] and pictures.judges(job.level):
                    _refuse_changed(pictures, job, [*values.values(), *_lists(out[0])])
                for path in files_in(out[1], began):
                    take(armed, record, job, path)
                return out
            finally:
                PROMPT.reset(mark)

        return get_output_data

    armed.replaced.put(execution, "get_output_data", executes)


def _shows(obj: Any) -> bool:
    """Whether a node shows or saves what it is given."""
    return bool(getattr(obj, "OUTPUT_NODE", False) or getattr(obj, "HAS_INTERMEDIATE_OUTPUT", False))


def _lists(output: Any) -> Iterable[Any]:
    return (found for found in output or () if isinstance(found, (list, tuple)))


def _refuse_changed(pictures: Pictures, job: Job, found: Iterable[Any]) -> None:
    """Judge what a node that is no output node has shown already; what would be replaced is refused."""
    for values in found:
        for value in values:
            if isinstance(value, torch.Tensor) and pictures.judged(value, job) is not value:
                raise Refused(job.level.message, "a picture that a node shows would have to be replaced")


def files_in(ui: Any, since: float) -> list[Path]:
    """Files of the output and temp folder that the answer of a node names, and that were written since a time.

    A node may name an older file as well; that it is named makes it nobody's.
    """
    import folder_paths

    found = []
    for items in ui.values() if isinstance(ui, Mapping) else ():
        for item in items if isinstance(items, (list, tuple)) else ():
            if not isinstance(item, Mapping) or not isinstance(item.get("filename"), str):
                continue
            kind = str(item.get("type", "output"))
            folder = folder_paths.get_directory_by_type(kind) if kind in ("output", "temp") else None
            if folder is None:
                continue
            path = Path(folder, str(item.get("subfolder") or ""), item["filename"]).resolve()
            inside = path.is_relative_to(Path(folder).resolve()) and path.is_file()
            # file systems keep whole seconds, some of them two
            if inside and path.stat().st_mtime >= since - 2:
                found.append(path)
    return found


def take(armed: Armed, record: Record, job: Job, path: Path) -> None:
    """A file that a node made belongs to the user of its job, and says what was decided."""
    if armed.owner(path) in (None, job.caller.user):
        armed.owns(path, job.caller.user)
        record.saved(job, path)
