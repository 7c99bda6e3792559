"""Gate 1: whatever guider or sampler a graph uses, the policy's guard is around it, and its trace must show it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from ...safeguidance.errors import InputError
from ...safeguidance.policy.decision import Decision
from .guards import AnyGuard, Guards
from .judges import SEEN
from .prediction import KEY, Token, gated
from .record import Record
from .refusal import BROKEN, Refused
from .runs import NotDrawn
from .state import Armed, Job
from .texts import KEY as TEXT_NOTE
from .texts import TextNote, notes_of

_METHODS = ("sample", "outer_sample", "inner_sample", "outer_predict_noise", "predict_noise", "__call__")
_LATENTS: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


def gate(armed: Armed, record: Record) -> None:
    """Put the gate around every sampling run of the host."""
    import comfy.samplers

    guards = Guards()

    def guarded(before: Any) -> Any:
        def sample(
            self: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any
        ) -> Any:
            job, run = armed.job(), None
            written: list[Future[None]] = []
            try:
                armed.replaced.check()
                if sigmas.shape[-1] == 0:  # the host gives back the very latent that it got
                    return before(self, noise, latent_image, sampler, sigmas, *args, **kwargs)
                run = guard = _guard(guards, job, self)
                guard.on_pass = lambda decision: written.append(record.passing(job, guard, decision))
                with _around(self, run):
                    out = before(self, noise, latent_image, sampler, sigmas, *args, **kwargs)
                record.sampled(job, run, run.verify(), next(iter(written), None))
                return out
            except NotDrawn:
                record.sampled(job, run, run.decision if run and run.decision else Decision("replace"))
                job.replaced = True
                return blank(latent_image)
            except (Refused, InputError) as error:
                record.settle(next(iter(written), None))
                record.stopped(job, run, error)
                raise
            except BaseException as error:
                record.settle(next(iter(written), None))
                record.stage(job, "stopped", "prompt", type(error).__name__)
                raise

        return sample

    armed.replaced.put(comfy.samplers.CFGGuider, "sample", guarded)


def is_blank(samples: Any) -> bool:
    """Whether a latent stands for a picture that was not drawn."""
    return _LATENTS.get(id(samples)) is samples


def blank(latent: Any) -> Any:
    """A latent of the same shape that holds nothing."""
    if getattr(latent, "is_nested", False):
        return type(latent)([blank(part) for part in latent.unbind()])
    made = torch.zeros_like(latent)
    _LATENTS[id(made)] = made
    return made


def _guard(guards: Guards, job: Job, guider: Any) -> AnyGuard:
    """The guard for a run, for the user whose job it is.

    Raises:
        Refused: if the guider goes its own ways, or there is no guard for it.
    """
    import comfy.samplers

    kind, stock = type(guider), comfy.samplers.CFGGuider
    own = [name for name in _METHODS if getattr(kind, name) is not getattr(stock, name) or name in vars(guider)]
    if own:
        message = f"This server cannot guard the guider {kind.__name__}, so it was stopped. Use KSampler or CFGGuider."
        raise Refused(message, f"the guider {kind.__name__} has its own {own[0]}")
    model = guider.model_patcher.model
    patched = {"apply_model", "_apply_model"} & set(guider.model_patcher.object_patches)
    if not gated(model) or patched:
        message = "This server cannot guard this model, so it was stopped. Choose another one."
        raise Refused(message, f"the model {type(model).__name__} has its own prediction")
    _check_texts(guider)
    notes = notes_of(guider.original_conds.get("positive") or ()) or []
    job.texts += [text for note in notes for text in note.texts if text not in job.texts]
    SEEN.sampled(guider.model_patcher, notes[0].clip if notes else None)
    run = guards.find(job.level, guider)
    run.level, run.token = job.level, Token()
    return run


def _check_texts(guider: Any) -> None:
    """Refuse texts that no guard reads.

    Raises:
        Refused: if a word of the negative prompt has a weight below 0, which draws it, or boxes have own texts.
    """
    for entry in guider.original_conds.get("negative") or ():
        note = entry.get(TEXT_NOTE)
        if isinstance(note, TextNote) and note.lowest < 0:
            message = "Weights below 0 are not allowed in the negative prompt. Use numbers from 0.5 to 1.5."
            raise Refused(message, "a weight below 0 in the negative prompt")
    for name, entries in guider.original_conds.items():
        if any("gligen" in entry for entry in entries or ()):
            raise Refused("Texts in boxes (GLIGEN) are not allowed on this server.", f"GLIGEN in the {name} prompt")


@contextmanager
def _around(guider: Any, run: AnyGuard) -> Iterator[None]:
    """Put the guard on a guider for one run: innermost, in place of one of the same kind, with the token for the model.

    The host adds the wrappers of the MODEL behind those of the options, so the guard stands among the former. Both are
    tables of the graph's objects, which other runs use too: they are put back.

    Raises:
        Refused: if the guider is in a run already.
    """
    from comfy.model_patcher import create_model_options_clone

    model, options, wrappers = guider.model_patcher, guider.model_options, guider.model_patcher.wrappers
    ours: dict[str, Any] = create_model_options_clone(options)
    transformer = ours.setdefault("transformer_options", {})
    if KEY in transformer:
        raise Refused(BROKEN, "a run inside a run")
    transformer[KEY] = run.token
    transformer["wrappers"] = _without(transformer.get("wrappers", {}), run.key)
    guider.model_options, model.wrappers = ours, _last(_without(wrappers, run.key), run)
    try:
        yield
    finally:
        guider.model_options, model.wrappers = options, wrappers


def _without(wrappers: Mapping[str, Any], key: str) -> dict[str, dict[str, list[Any]]]:
    """Wrappers but those of a key."""
    return {
        place: {name: list(found) for name, found in named.items() if name != key} for place, named in wrappers.items()
    }


def _last(wrappers: dict[str, dict[str, list[Any]]], run: AnyGuard) -> dict[str, dict[str, list[Any]]]:
    """Wrappers with the guard as the last, which is the innermost."""
    from comfy.patcher_extension import WrappersMP

    wrappers.setdefault(WrappersMP.OUTER_SAMPLE, {})[run.key] = [run.around_run]
    wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})[run.key] = [run.around_step]
    wrappers.setdefault(WrappersMP.CALC_COND_BATCH, {})[run.key] = [run.around_batch]
    return wrappers
