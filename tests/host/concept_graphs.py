"""What the concept guidance tests share: the nodes, concepts of the testbed, and how predictions are made by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.host.safecfg_graphs import part, world

PLAIN = {"probe": 0.2, "settle": 0.0, "every": 1, "neutral": "", "reference": "none"}
"""SP-Guard that measures as published: in each evaluation of the first fifth of the run, without neutral texts."""
EASY = {"threshold": 0.0, "end": 1.0, **PLAIN}
"""The same, acting on every prompt that agrees at all, to the last step."""


@cache
def concepts(own: str = "blade: knife\ndrug: syringe") -> Any:
    """CONCEPTS, by default of two categories."""
    return part("safeguidance.concepts").select_concepts((), own)


def mask(model: Any = None, clip: Any = None, looked_for: Any = None, **settings: Any) -> Any:
    """The SP-Guard Mask node's MODEL and TRACE; it measures unless ``judge_by`` says otherwise."""
    settings.setdefault("judge_by", "measured")
    node = part("nodes.concept_guidance.factory").PATCH_NODES["sp_guard"]
    return node.execute(model or world()[0], clip or world()[1], looked_for or concepts(), **settings).args


def guider(positive: Any, negative: Any, model: Any = None, cfg: float = 4.0, **settings: Any) -> Any:
    """The SP-Guard Guider node's GUIDER and TRACE; it measures unless ``judge_by`` says otherwise."""
    settings.setdefault("judge_by", "measured")
    node = part("nodes.concept_guidance.sp_guard").SPGuardGuider
    looked_for = settings.pop("looked_for", None) or concepts()
    return node.execute(model or world()[0], positive, negative, cfg, world()[1], looked_for, **settings).args


def family(method: str, model: Any = None, looked_for: Any = None, clip: Any = None, **settings: Any) -> Any:
    """The Concept Guidance node's MODEL and TRACE."""
    node = part("nodes.concept_guidance.concept_guidance").ConceptGuidance
    return node.execute(model or world()[0], clip or world()[1], looked_for or concepts(), method, **settings).args


def by_hand(
    positive: Any, negative: Any, texts: Any, method: Any, config: Any, required_concepts: Any, cfg: float = 4.0
) -> Any:
    """A guider that predicts prompt, base and each concept in a call of its own and applies a method to them."""
    import comfy.samplers

    step_core, host = part("safeguidance.guidance.method"), part("nodes.host.patcher")

    class Plain(comfy.samplers.CFGGuider):
        def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
            if self.replay is not None:
                x = self.replay[len(self.made)].to(x)

            def predict(name: str) -> Any:
                conds = [self.conds[name]]
                return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]

            progress = host.progress_of(self, float(timestep.max()))
            info = step_core.StepInfo(float(timestep.max()), progress, len(x), len(texts))
            wanted = required_concepts(info, config, self.state)
            concepts = [predict(f"concept_{k}") if bool(wanted[:, k].any()) else None for k in range(len(texts))]
            step = step_core.Step(
                predict("positive"), predict("negative"), tuple(concepts), x, timestep, self.cfg, progress
            )
            output = method(step, config, self.state)
            self.state = output.state
            self.made.append(output.denoised)
            return output.denoised

    guider = Plain(world()[0])
    guider.state, guider.replay, guider.made = step_core.State(), None, []
    named = {f"concept_{k}": text for k, text in enumerate(texts)}
    guider.inner_set_conds({"positive": positive, "negative": negative, **named})
    guider.set_cfg(cfg)
    return guider
