"""Workflows in the style people share, and where a guard belongs in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .flows import Flow, Out

MUTED, BYPASSED = 2, 4


@dataclass(frozen=True)
class Shared:
    """A workflow and what it lacks.

    Args:
        workflow: in the editor's format.
        guards: (where the MODEL comes from, where the CLIP does, what samples) by titles; in a subgraph after its name.
        asleep: titles of guards to switch on.
        no_clip: titles of samplers that no guard can be put before.
        stock: whether the host knows all its nodes.
    """

    workflow: dict[str, Any]
    guards: tuple[tuple[str, str, str], ...] = ()
    asleep: tuple[str, ...] = ()
    no_clip: tuple[str, ...] = ()
    stock: bool = True


WORKFLOWS: dict[str, Callable[[], Shared]] = {}


def _shared(make: Callable[[], Shared]) -> Callable[[], Shared]:
    WORKFLOWS[make.__name__.strip("_")] = make
    return make


def _prompts(flow: Flow, clip: Out, kind: str = "CLIPTextEncode", name: str = "") -> tuple[Out, Out]:
    return flow.one(kind, f"{name}prompt", clip=clip), flow.one(kind, f"{name}negative", clip=clip)


def _sample(flow: Flow, model: Out, prompts: tuple[Out, Out], latent: Out, title: str = "sampler", **more: Any) -> Out:
    kind = more.pop("kind", "KSampler")
    return flow.one(kind, title, model=model, positive=prompts[0], negative=prompts[1], latent_image=latent, **more)


def _save(flow: Flow, latent: Out, vae: Out) -> None:
    flow.add("SaveImage", images=flow.one("VAEDecode", samples=latent, vae=vae))


def _start(flow: Flow) -> tuple[Out, Out, Out, Out]:
    model, clip, vae = flow.add("CheckpointLoaderSimple", "checkpoint")
    return model, clip, vae, flow.one("EmptyLatentImage")


ONE = (("checkpoint", "checkpoint", "sampler"),)


@_shared
def text_to_image() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    _save(flow, _sample(flow, model, _prompts(flow, clip), latent), vae)
    return Shared(flow.workflow(), ONE)


@_shared
def image_to_image() -> Shared:
    flow = Flow()
    model, clip, vae = flow.add("CheckpointLoaderSimple", "checkpoint")
    image, _ = flow.add("LoadImage")
    latent = flow.one("VAEEncode", pixels=image, vae=vae)
    _save(flow, _sample(flow, model, _prompts(flow, clip), latent), vae)
    return Shared(flow.workflow(), ONE)


@_shared
def hires_fix() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    first = _sample(flow, model, prompts, latent, "first pass")
    larger = flow.one("LatentUpscaleBy", samples=first)
    _save(flow, _sample(flow, model, prompts, larger, "second pass"), vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "first pass, second pass"),))


def _flux(flow: Flow) -> tuple[Out, Out, Out]:
    model = flow.one("UNETLoader", "unet")
    clip = flow.one("DualCLIPLoader", "clips")
    shifted = flow.one("ModelSamplingFlux", "shift", model=model)
    return shifted, clip, flow.one("FluxGuidance", conditioning=flow.one("CLIPTextEncode", "prompt", clip=clip))


def _custom(flow: Flow, guider: Out, model: Out, latent: Out, vae: Out) -> None:
    sigmas = flow.one("BasicScheduler", model=model)
    done = flow.one(
        "SamplerCustomAdvanced",
        "advanced",
        noise=flow.one("RandomNoise"),
        guider=guider,
        sampler=flow.one("KSamplerSelect"),
        sigmas=sigmas,
        latent_image=latent,
    )
    _save(flow, done, vae)


@_shared
def flux_basic_guider() -> Shared:
    flow = Flow()
    model, _, prompt = _flux(flow)
    guider = flow.one("BasicGuider", "guider", model=model, conditioning=prompt)
    _custom(flow, guider, model, flow.one("EmptySD3LatentImage"), flow.one("VAELoader"))
    return Shared(flow.workflow(), (("shift", "clips", "guider"),))


@_shared
def cfg_guider() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    positive, negative = _prompts(flow, clip)
    guider = flow.one("CFGGuider", "guider", model=model, positive=positive, negative=negative)
    _custom(flow, guider, model, latent, vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "guider"),))


@_shared
def dual_cfg_guider() -> Shared:
    flow = Flow()
    model, clip, vae = flow.add("CheckpointLoaderSimple", "checkpoint")
    positive, negative = _prompts(flow, clip)
    image, _ = flow.add("LoadImage")
    edited, plain, latent = flow.add(
        "InstructPixToPixConditioning", positive=positive, negative=negative, vae=vae, pixels=image
    )
    guider = flow.one("DualCFGGuider", "guider", model=model, cond1=edited, cond2=plain, negative=negative)
    _custom(flow, guider, model, latent, vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "guider"),))


@_shared
def sdxl_base_and_refiner() -> Shared:
    flow = Flow()
    base, base_clip, _ = flow.add("CheckpointLoaderSimple", "base")
    refiner, refiner_clip, vae = flow.add("CheckpointLoaderSimple", "refiner")
    latent = flow.one("EmptyLatentImage")
    kind = "KSamplerAdvanced"
    half = _sample(flow, base, _prompts(flow, base_clip, name="base "), latent, "base sampler", kind=kind)
    done = _sample(flow, refiner, _prompts(flow, refiner_clip, name="refiner "), half, "refiner sampler", kind=kind)
    _save(flow, done, vae)
    return Shared(flow.workflow(), (("base", "base", "base sampler"), ("refiner", "refiner", "refiner sampler")))


@_shared
def lora_stack_one_bypassed() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    model, clip = flow.add("LoraLoader", "style", model=model, clip=clip)
    model, clip = flow.add("LoraLoader", "detail", mode=BYPASSED, model=model, clip=clip)
    model = flow.one("LoraLoaderModelOnly", "last", model=model)
    skipped = flow.one("CLIPSetLastLayer", "skip", clip=clip)
    _save(flow, _sample(flow, model, _prompts(flow, skipped), latent), vae)
    return Shared(flow.workflow(), (("last", "skip", "sampler"),))


@_shared
def flux_k_sampler() -> Shared:
    flow = Flow()
    model, _, prompt = _flux(flow)
    zero = flow.one("ConditioningZeroOut", conditioning=prompt)
    latent = flow.one("EmptySD3LatentImage")
    _save(flow, _sample(flow, model, (prompt, zero), latent), flow.one("VAELoader"))
    return Shared(flow.workflow(), (("shift", "clips", "sampler"),))


@_shared
def sd3_with_timestep_ranges() -> Shared:
    flow = Flow()
    model, _, vae = flow.add("CheckpointLoaderSimple", "checkpoint")
    positive, negative = _prompts(flow, flow.one("TripleCLIPLoader", "clips"))
    zero = flow.one("ConditioningZeroOut", conditioning=negative)
    late = flow.one("ConditioningSetTimestepRange", "late", conditioning=zero)
    early = flow.one("ConditioningSetTimestepRange", "early", conditioning=negative)
    both = flow.one("ConditioningCombine", conditioning_1=late, conditioning_2=early)
    shifted = flow.one("ModelSamplingSD3", "shift", model=model)
    _save(flow, _sample(flow, shifted, (positive, both), flow.one("EmptySD3LatentImage")), vae)
    return Shared(flow.workflow(), (("shift", "clips", "sampler"),))


@_shared
def wan_video() -> Shared:
    flow = Flow()
    shifted = flow.one("ModelSamplingSD3", "shift", model=flow.one("UNETLoader"))
    positive, negative = _prompts(flow, flow.one("CLIPLoader", "umt5"))
    vae = flow.one("VAELoader")
    image, _ = flow.add("LoadImage")
    first, second, latent = flow.add(
        "WanImageToVideo", positive=positive, negative=negative, vae=vae, clip_vision_output=None, start_image=image
    )
    frames = flow.one("VAEDecode", samples=_sample(flow, shifted, (first, second), latent), vae=vae)
    flow.add("SaveVideo", video=flow.one("CreateVideo", images=frames))
    return Shared(flow.workflow(), (("shift", "umt5", "sampler"),))


@_shared
def control_net() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    positive, negative = _prompts(flow, clip)
    image, _ = flow.add("LoadImage")
    net = flow.one("ControlNetLoader")
    guided = flow.add(
        "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, image=image, vae=vae
    )
    _save(flow, _sample(flow, model, (guided[0], guided[1]), latent), vae)
    return Shared(flow.workflow(), ONE)


@_shared
def inpaint() -> Shared:
    flow = Flow()
    model, clip, vae = flow.add("CheckpointLoaderSimple", "checkpoint")
    positive, negative = _prompts(flow, clip)
    image, mask = flow.add("LoadImage")
    first, second, latent = flow.add(
        "InpaintModelConditioning", positive=positive, negative=negative, vae=vae, pixels=image, mask=mask
    )
    _save(flow, _sample(flow, model, (first, second), latent), vae)
    return Shared(flow.workflow(), ONE)


@_shared
def reroutes() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    near = flow.one("Reroute", "near", outputs=["MODEL"], **{"": model})
    far = flow.one("Reroute", "far", outputs=["MODEL"], **{"": near})
    words = flow.one("Reroute", "words", outputs=["CLIP"], **{"": clip})
    _save(flow, _sample(flow, far, _prompts(flow, words), latent), vae)
    return Shared(flow.workflow(), (("far", "words", "sampler"),))


@_shared
def links_led_round() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    _save(flow, _sample(flow, model, _prompts(flow, clip), latent), vae)
    workflow = flow.workflow()
    number = next(link[0] for link in flow.links if link[5] == "MODEL")
    workflow["extra"] = {
        "reroutes": [{"id": 1, "pos": [900, 40], "linkIds": [number]}],
        "linkExtensions": [{"id": number, "parentId": 1}],
    }
    return Shared(workflow, ONE)


@_shared
def seed_from_a_primitive() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    seed = flow.one("PrimitiveNode", "seed", widgets=[7, "fixed"])
    prompts = _prompts(flow, clip)
    _save(flow, _sample(flow, model, prompts, latent, seed=seed), vae)
    flow.nodes[-3]["inputs"][-1]["widget"] = {"name": "seed"}
    return Shared(flow.workflow(), ONE)


@_shared
def muted_and_bypassed_samplers() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    _save(flow, _sample(flow, model, prompts, latent, "muted", mode=MUTED), vae)
    bypassed = _sample(flow, model, prompts, latent, "bypassed", mode=BYPASSED)
    free = flow.one("FreeU_V2", "freeu", mode=BYPASSED, model=model)
    _save(flow, _sample(flow, free, prompts, bypassed), vae)
    return Shared(flow.workflow(), (("freeu", "checkpoint", "sampler"),))


@_shared
def groups() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    _save(flow, _sample(flow, model, _prompts(flow, clip), latent), vae)
    flow.groups.append({"id": 1, "title": "sampling", "bounding": [0, 0, 2000, 900], "color": "#3f789e", "flags": {}})
    return Shared(flow.workflow(), ONE)


@_shared
def several_checkpoints() -> Shared:
    flow = Flow()
    latent = flow.one("EmptyLatentImage")
    for name in ("first", "second", "third"):
        model, clip, vae = flow.add("CheckpointLoaderSimple", name)
        _save(flow, _sample(flow, model, _prompts(flow, clip, name=f"{name} "), latent, f"{name} sampler"), vae)
    return Shared(flow.workflow(), tuple((name, name, f"{name} sampler") for name in ("first", "second", "third")))


@_shared
def merged_models() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    other, _, _ = flow.add("CheckpointLoaderSimple", "other")
    merged = flow.one("ModelMergeSimple", "merge", model1=model, model2=other)
    flow.add("ModelSave", model=merged)
    _save(flow, _sample(flow, merged, _prompts(flow, clip), latent), vae)
    return Shared(flow.workflow(), (("merge", "checkpoint", "sampler"),))


@_shared
def upscaled_with_a_second_pass() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    image = flow.one("VAEDecode", samples=_sample(flow, model, prompts, latent, "first"), vae=vae)
    large = flow.one("ImageUpscaleWithModel", upscale_model=flow.one("UpscaleModelLoader"), image=image)
    tuned = flow.one("LoraLoaderModelOnly", "tuned", model=model)
    again = flow.one("VAEEncode", pixels=large, vae=vae)
    _save(flow, _sample(flow, tuned, prompts, again, "second"), vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "first"), ("tuned", "checkpoint", "second")))
