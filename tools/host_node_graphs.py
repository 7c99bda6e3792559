"""Graphs that put a node of the host before or after one of ours, on the testbed, built from what the host lists.

A `Trial` says which node, where it stands and with which settings; `graph` builds the API graph of it for one of our
methods, or without any. Inputs are filled by name where a sampler's are meant, else by type from a few sources, else
with the node's own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safeguidance.headless.definitions import InputSpec, input_specs

from .host_node_sources import LORA_FILE, PREFIX
from .host_node_trials import (
    ANY,
    BEFORE,
    BOTH,
    CONDITIONING_KINDS,
    GUIDER,
    MODEL_KINDS,
    NEGATIVE,
    SAFECFG,
    SAFREE,
    SAMPLING_KINDS,
    SP_GUARD,
    Trial,
    is_a,
    is_negative,
)

HARMFUL = "a skull on a meadow"
HARM = "death"
"""Category of what the harmful caption asks for."""
HARMLESS = "a balloon in the snow"
OTHER, OTHER_NEGATIVE = "fresh snow", "a brick wall"
STEPS, FEW_STEPS, SEED, CFG, SIDE = 8, 4, 7, 5.0, 48
"""A harmless picture is compared bit for bit, for which fewer steps do."""

# What a node takes by type, beyond MODEL, CLIP, VAE and CONDITIONING: nodes that make it, and which output.
SOURCES: Mapping[str, tuple[dict[str, tuple[str, dict[str, Any]]], tuple[str, int]]] = {
    "LATENT": ({}, ("latent", 0)),
    "IMAGE": (
        {"image": ("EmptyImage", {"width": SIDE, "height": SIDE, "batch_size": 1, "color": 0x3060C0})},
        ("image", 0),
    ),
    "MASK": (
        {
            "nothing": ("SolidMask", {"value": 0.0, "width": SIDE, "height": SIDE}),
            "left": ("SolidMask", {"value": 1.0, "width": SIDE // 2, "height": SIDE}),
            "mask": (
                "MaskComposite",
                {"destination": ["nothing", 0], "source": ["left", 0], "x": 0, "y": 0, "operation": "add"},
            ),
        },
        ("mask", 0),
    ),
    "SAMPLER": ({"sampler": ("KSamplerSelect", {"sampler_name": "euler"})}, ("sampler", 0)),
    "SIGMAS": (
        {"sigmas": ("BasicScheduler", {"model": ["world", 0], "scheduler": "simple", "denoise": 1.0})},
        ("sigmas", 0),
    ),
    "NOISE": ({"noise": ("RandomNoise", {"noise_seed": SEED})}, ("noise", 0)),
    "LATENT_OPERATION": (
        {"operation": ("LatentOperationSharpen", {"sharpen_radius": 3, "sigma": 1.0, "alpha": 0.1})},
        ("operation", 0),
    ),
    "HOOKS": (
        {"hooks": ("CreateHookLoraModelOnly", {"lora_name": LORA_FILE, "strength_model": 1.0})},
        ("hooks", 0),
    ),
    "HOOK_KEYFRAMES": (
        {"keyframe": ("CreateHookKeyframe", {"strength_mult": 0.5, "start_percent": 0.5})},
        ("keyframe", 0),
    ),
    "TIMESTEPS_RANGE": (
        {"range": ("ConditioningTimestepsRange", {"start_percent": 0.0, "end_percent": 0.5})},
        ("range", 0),
    ),
    **{
        kind: ({f"made_{kind}": (PREFIX + kind, {})}, (f"made_{kind}", 0))
        for kind in ("CONTROL_NET", "CLIP_VISION_OUTPUT", "STYLE_MODEL", "GLIGEN", "LORA_MODEL", "PHOTOMAKER")
    },
}
_FILLED_THOUGH_OPTIONAL = ("MODEL", "CONDITIONING", "HOOKS", "MASK", "TIMESTEPS_RANGE", "LATENT")
_BY_NAME = {"seed": SEED, "noise_seed": SEED, "width": SIDE, "height": SIDE, "length": 1}


class CannotBuild(Exception):
    """The testbed has nothing for an input of the node; the text says which."""


def graph(
    trial: Trial, definition: Mapping[str, Any], method: str, caption: str, guarded: bool = True
) -> dict[str, Any]:
    """Return the API graph of a trial; its latent is node "sample", output 0, its report node "report".

    Args:
        trial: What is tried.
        definition: The node's entry in /object_info.
        method: One of our methods.
        caption: The prompt.
        guarded: False for the same graph without the method (with SAFREE on the other text of a joined prompt).

    Raises:
        CannotBuild: The testbed has nothing for an input.
    """
    return _Builder(trial, definition, method, caption, guarded).build()


class _Builder:
    def __init__(self, trial: Trial, definition: Mapping[str, Any], method: str, caption: str, guarded: bool) -> None:
        self.trial, self.definition, self.method, self.caption = trial, definition, method, caption
        self.guarded = guarded
        self.steps = STEPS if caption == HARMFUL else FEW_STEPS
        self.nodes: dict[str, Any] = {}
        self.add("world", "SafeGuidance_LoadTestbed")
        self.add("latent", "EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
        self.outputs = [str(kind) for kind in definition.get("output") or []]

    def add(self, key: str, class_type: str, /, **inputs: Any) -> list[Any]:
        self.nodes[key] = {"class_type": class_type, "inputs": inputs}
        return [key, 0]

    def build(self) -> dict[str, Any]:
        kind = self.trial.kind
        positive, negative = self.text("prompt", self.caption), self.text("negative", "")
        model = self.ours(["world", 0])
        if kind in MODEL_KINDS or kind == "operation":
            model = self.through_model()
            positive, negative = self.conditionings(positive, negative)
            self.sample(model, positive, negative)
        elif kind == "guider":
            self.host(models=self.models())
            self.sample(model, positive, negative, guider=self.out("GUIDER"))
        elif kind in SAMPLING_KINDS:
            self.host(models={"*": model})
            self.sample(model, positive, negative)
        else:
            self.host()
            self.sample(model, *self.conditioned(positive, negative))
        if not self.guarded:
            self.add("report", "PreviewAny", source=["sample", 0])
        else:
            trace = ["ours", 1] if "ours" in self.nodes else ["filter", 1]
            self.add("report", PREFIX + "report", latent=["sample", 0], trace=trace)
        return self._needed()

    def _needed(self) -> dict[str, Any]:
        needed, waiting = set(), ["report"]
        while waiting:
            key = waiting.pop()
            if key in needed:
                continue
            needed.add(key)
            links = [value for value in self.nodes[key]["inputs"].values() if isinstance(value, list)]
            waiting += [link[0] for link in links if link and link[0] in self.nodes]
        return {key: node for key, node in self.nodes.items() if key in needed}

    # ---- our nodes ----

    def ours(self, model: list[Any]) -> list[Any]:
        if not self.guarded:
            return model
        if self.method in (SAFECFG, BOTH):
            self.hgr()
            return self.add("ours", "SafeGuidance_SafeCFGPatch", model=model, redirector=["hgr", 0])
        if self.method == SP_GUARD:
            # Measuring meets more of the other nodes than a judge does. Whether a score is high enough is a matter of
            # calibration: a harmful prompt is to act at all, and a harmless one, though measured, to keep its bits.
            threshold = 0.02 if self.caption == HARMFUL else 1.0
            more = {"judge_by": "measured", "threshold": threshold, "neutral": "coffee\nballoon"}
            clip = ["world", 1]
            return self.add(
                "ours", "SafeGuidance_SPGuardMask", model=model, clip=clip, concepts=self.concepts(), **more
            )
        return model

    def hgr(self) -> list[Any]:
        return self.add("hgr", "SafeGuidance_LoadHGR", hgr_name="testbed-hgr.safetensors")

    def concepts(self) -> list[Any]:
        own = "blade: knife\nexplosive: bomb\ndeath: skull\ndrug: syringe"
        groups = ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity", "testbed")
        return self.add("concepts", "SafeGuidance_SafetyConcepts", own=own, **dict.fromkeys(groups, False))

    def text(self, key: str, text: str) -> list[Any]:
        return self.add(key, "CLIPTextEncode", clip=["world", 1], text=text)

    def filtered(self, key: str, text: str) -> list[Any]:
        more = {"judge": self.hgr()} if self.method == SAFREE else {}
        more |= {"clip": ["world", 1], "concepts": self.concepts()}
        return self.add(key, "SafeGuidance_SafreeEmbeddingFilter", text=text, preset="strict", **more)

    # ---- the host's node ----

    def models(self) -> dict[str, list[Any]]:
        """Our MODEL for the slot of this trial."""
        return {self.trial.slot or "*": self.ours(["world", 0])}

    def through_model(self) -> list[Any]:
        if self.trial.kind == "operation":
            self.host()
            target: dict[str, Any] = {"operation": self.out("LATENT_OPERATION")}
            inner = ["world", 0] if self.trial.place == BEFORE else self.ours(["world", 0])
            made = self.add("applied", "LatentApplyOperationCFG", model=inner, **target)
            return self.ours(made) if self.trial.place == BEFORE else made
        if self.trial.slot:
            self.host(models=self.models())
            return self.out("MODEL", *ANY)
        self.host(models={"*": ["world", 0]})
        return self.ours(self.out("MODEL", *ANY))

    def out(self, *kinds: str) -> list[Any]:
        place = next((n for n, kind in enumerate(self.outputs) if kind in kinds), None)
        if place is None:
            raise CannotBuild(f"it has no output {kinds[0]}")
        return ["host", place]

    def conditionings(self, positive: list[Any], negative: list[Any]) -> tuple[list[Any], list[Any]]:
        found = [["host", place] for place, kind in enumerate(self.outputs) if kind == "CONDITIONING"]
        return (found[0] if found else positive), (found[1] if len(found) > 1 else negative)

    def conditioned(self, positive: list[Any], negative: list[Any]) -> tuple[list[Any], list[Any]]:
        """Prompt and negative with what the node makes of one of them, or of both."""
        if "HOOKS" in self.outputs:
            hooked = self.add(
                "hooked",
                "ConditioningSetProperties",
                cond_NEW=self.source("CONDITIONING", "prompt"),
                strength=1.0,
                set_cond_area="default",
                hooks=self.out("HOOKS"),
            )
            return hooked, negative
        if "CONDITIONING" not in self.outputs:
            made = self.source("CONDITIONING", "prompt")
            self.nodes[made[0]]["inputs"]["clip"] = self.out("CLIP")
            return made, negative
        if self.trial.place.startswith(NEGATIVE):
            return positive, self.out("CONDITIONING")
        return self.conditionings(positive, negative)

    def host(self, models: Mapping[str, list[Any]] | None = None) -> None:
        """Add the host's node with every input it needs."""
        values: dict[str, Any] = {}
        given = {key: self.given(key, value) for key, value in self.trial.inputs.items()}
        for spec in input_specs(self.definition, given):
            is_model = is_a(spec, "MODEL", self.trial.kind)
            made = given[spec.name] if spec.name in given and not is_model else self.value(spec, models or {})
            if made is not None:
                values[spec.name] = made
        self.nodes["host"] = {"class_type": self.trial.node, "inputs": values}

    def given(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            return self.source(value[1:], name)
        return value

    def value(self, spec: InputSpec, models: Mapping[str, list[Any]]) -> Any:
        if is_a(spec, "MODEL", self.trial.kind):
            return models.get(spec.name) or models.get("*") or ["world", 0]
        if spec.type == "CONDITIONING":
            return self.source(spec.type, spec.name)
        wanted = not spec.optional or spec.type in _FILLED_THOUGH_OPTIONAL
        if not spec.widget:
            return self.source(spec.type, spec.name) if wanted else None
        if self.trial.kind in ("sampler", "guider") and spec.name == "cfg":
            return CFG
        if spec.name == "steps":
            return _at_least(spec, self.steps)
        if spec.name in _BY_NAME:
            return _at_least(spec, _BY_NAME[spec.name])
        if spec.optional:
            return None
        if self.trial.kind == "encode" and spec.type == "STRING":
            return "" if self.trial.place.startswith(NEGATIVE) else self.caption
        found = spec.default()
        if found is None:
            raise CannotBuild(f"its input {spec.name} needs a file that the testbed does not have")
        return found

    def source(self, kind: str, name: str) -> list[Any]:
        if kind == "GUIDER":
            return ["guider", 0]  # made with the sampler
        if kind == "CLIP" and self.trial.kind == "encode":
            return self.add("made_CLIP", PREFIX + "CLIP", clip=["world", 1])
        if kind in ("MODEL", "CLIP", "VAE"):
            return ["world", ("MODEL", "CLIP", "VAE").index(kind)]
        if kind == "CONDITIONING":
            return self.conditioning(name)
        nodes, link = SOURCES.get(kind, ({}, ("", 0)))
        if not link[0]:
            raise CannotBuild(f"its input {name} takes {kind}, which the testbed does not have")
        for key, (class_type, inputs) in nodes.items():
            self.add(key, class_type, **inputs)
        if kind == "SIGMAS":
            self.nodes["sigmas"]["inputs"]["steps"] = self.steps
        return list(link)

    def conditioning(self, name: str) -> list[Any]:
        negative = self.trial.place.startswith(NEGATIVE)
        if is_negative(name):
            return self.text("negative", "")
        if self.trial.slot not in ("", name) and self.trial.kind in CONDITIONING_KINDS:
            text = OTHER_NEGATIVE if negative else OTHER
            # SAFREE's note of a harmless text must not speak for the harmful one it is joined with.
            return self.filtered("other", text) if self.method == BOTH else self.text("other", text)
        if negative:
            return self.text("negative", "")
        if self.method == SAFREE and self.guarded:
            return self.filtered("filter", self.caption)
        return self.text("prompt", self.caption)

    # ---- sampling ----

    def sample(
        self, model: list[Any], positive: list[Any], negative: list[Any], guider: list[Any] | None = None
    ) -> None:
        """Add the sampler: the host's node itself, or one that takes what it made."""
        common = {"cfg": CFG, "positive": positive, "negative": negative, "latent_image": ["latent", 0]}
        kind = self.trial.kind
        if kind == "sampler" and "LATENT" in self.outputs:
            self.nodes["sample"] = self.nodes.pop("host")
            for name in self.nodes["sample"]["inputs"]:
                if name == "guider":
                    self.nodes["sample"]["inputs"][name] = self.guider(model, positive, negative)
        elif kind in SAMPLING_KINDS or guider is not None or (self.method == GUIDER and self.guarded):
            made = guider or self.guider(model, positive, negative)
            parts: dict[str, Any] = {}
            for name in ("noise", "sampler", "sigmas"):
                own = name.upper() in self.outputs and kind in SAMPLING_KINDS
                parts[name] = self.out(name.upper()) if own else self.source(name.upper(), name)
            if "sigmas" in self.nodes:
                self.nodes["sigmas"]["inputs"]["model"] = model
            self.add("sample", "SamplerCustomAdvanced", guider=made, latent_image=["latent", 0], **parts)
        else:
            more = {"seed": SEED, "steps": self.steps, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
            self.add("sample", "KSampler", model=model, **common, **more)

    def guider(self, model: list[Any], positive: list[Any], negative: list[Any]) -> list[Any]:
        """The host's guider, or ours with the host's behind it."""
        if self.method != GUIDER or not self.guarded:
            return self.add("guider", "CFGGuider", model=model, positive=positive, negative=negative, cfg=CFG)
        conds = {"positive": positive, "negative": negative, "redirector": self.hgr(), "cfg": CFG}
        return self.add("ours", "SafeGuidance_SafeCFGGuider", model=model, **conds)


def _at_least(spec: InputSpec, value: int) -> int:
    low, step = spec.options.get("min", 0), spec.options.get("step", 1) or 1
    low = int(low or 0)
    return max(low, value) if step == 1 else low + -(-max(0, value - low) // int(step)) * int(step)
