"""More workflows in the style people share: subgraphs, guards that are there already, nodes of other packs."""

from __future__ import annotations

from typing import Any

from .flows import C, Flow, Out
from .workflows import BYPASSED, MUTED, ONE, Shared, _prompts, _sample, _save, _shared, _start

GUARD = "SafeGuidance_GuardModel"


def _sampling(number: int, name: str, lora: bool = False) -> dict[str, Any]:
    """A subgraph that samples with what comes in."""
    flow = Flow()
    model, clip = flow.entrance("model", "MODEL"), flow.entrance("clip", "CLIP")
    if lora:
        model, clip = flow.add("LoraLoader", "lora", model=model, clip=clip)
    done = _sample(flow, model, _prompts(flow, clip), flow.one("EmptyLatentImage"))
    return flow.as_subgraph(number, name, LATENT=done)


@_shared
def subgraph_with_the_model_from_outside() -> Shared:
    flow = Flow()
    model, clip, vae, _ = _start(flow)
    (latent,) = flow.use(_sampling(1, "sampling"), "inside", model=model, clip=clip)
    _save(flow, latent, vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "inside"),))


@_shared
def subgraph_with_all_of_it() -> Shared:
    inner = Flow()
    model, clip, vae, latent = _start(inner)
    image = inner.one("VAEDecode", samples=_sample(inner, model, _prompts(inner, clip), latent), vae=vae)
    flow = Flow()
    (shown,) = flow.use(inner.as_subgraph(1, "all", IMAGE=image), "inside")
    flow.add("SaveImage", images=shown)
    return Shared(flow.workflow(), (("all/checkpoint", "all/checkpoint", "all/sampler"),))


@_shared
def subgraph_used_twice_with_a_lora_inside() -> Shared:
    flow = Flow()
    definition = _sampling(1, "sampling", lora=True)
    for name in ("first", "second"):
        model, clip, vae = flow.add("CheckpointLoaderSimple", name)
        (latent,) = flow.use(definition, f"{name} inside", model=model, clip=clip)
        _save(flow, latent, vae)
    return Shared(flow.workflow(), (("first", "first", "first inside"), ("second", "second", "second inside")))


@_shared
def nested_subgraphs() -> Shared:
    middle = Flow()
    model, clip = middle.entrance("model", "MODEL"), middle.entrance("clip", "CLIP")
    (latent,) = middle.use(_sampling(1, "sampling"), "innermost", model=model, clip=clip)
    own, own_clip, _ = middle.add("CheckpointLoaderSimple", "refiner")
    done = _sample(middle, own, _prompts(middle, own_clip), latent, "refine")
    flow = Flow()
    model, clip, vae, _ = _start(flow)
    (out,) = flow.use(middle.as_subgraph(2, "middle", LATENT=done), "outer", model=model, clip=clip)
    _save(flow, out, vae)
    guards = (("checkpoint", "checkpoint", "outer"), ("middle/refiner", "middle/refiner", "middle/refine"))
    return Shared(flow.workflow(), guards)


@_shared
def subgraph_that_hands_its_model_on() -> Shared:
    inner = Flow()
    model, clip = inner.entrance("model", "MODEL"), inner.entrance("clip", "CLIP")
    tuned, words = inner.add("LoraLoader", "lora", model=model, clip=clip)
    done = _sample(inner, tuned, _prompts(inner, words), inner.one("EmptyLatentImage"))
    flow = Flow()
    model, clip, vae, _ = _start(flow)
    definition = inner.as_subgraph(1, "first pass", LATENT=done, MODEL=tuned)
    latent, same = flow.use(definition, "inside", model=model, clip=clip)
    _save(flow, _sample(flow, same, _prompts(flow, clip), latent, "second pass"), vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "inside"),))


@_shared
def subgraph_that_only_loads() -> Shared:
    inner = Flow()
    model, clip, vae = inner.add("CheckpointLoaderSimple", "checkpoint")
    flow = Flow()
    model, clip, vae = flow.use(inner.as_subgraph(1, "loading", MODEL=model, CLIP=clip, VAE=vae), "loader")
    _save(flow, _sample(flow, model, _prompts(flow, clip), flow.one("EmptyLatentImage")), vae)
    return Shared(flow.workflow(), (("loader", "loader", "sampler"),))


@_shared
def subgraph_that_loads_a_guarded_model() -> Shared:
    inner = Flow()
    model, clip, vae = inner.add("CheckpointLoaderSimple", "checkpoint")
    model = inner.one(GUARD, "guard", model=model, clip=clip)
    flow = Flow()
    model, clip, vae = flow.use(inner.as_subgraph(1, "loading", MODEL=model, CLIP=clip, VAE=vae), "loader")
    _save(flow, _sample(flow, model, _prompts(flow, clip), flow.one("EmptyLatentImage")), vae)
    return Shared(flow.workflow())


@_shared
def prompt_encoded_outside_of_the_subgraph() -> Shared:
    inner = Flow()
    positive, negative = inner.entrance("positive", C), inner.entrance("negative", C)
    done = _sample(inner, inner.one("UNETLoader", "unet"), (positive, negative), inner.one("EmptyLatentImage"))
    flow = Flow()
    prompts = _prompts(flow, flow.one("CLIPLoader", "words"))
    definition = inner.as_subgraph(1, "sampling", LATENT=done)
    (latent,) = flow.use(definition, "inside", positive=prompts[0], negative=prompts[1])
    _save(flow, latent, flow.one("VAELoader"))
    return Shared(flow.workflow(), no_clip=("sampling/sampler",))


@_shared
def one_of_two_guarded() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    guarded = flow.one(GUARD, "guard", model=model, clip=clip)
    patched = flow.one("FreeU_V2", "freeu", model=guarded)
    _save(flow, _sample(flow, patched, prompts, latent, "guarded"), vae)
    _save(flow, _sample(flow, model, prompts, latent), vae)
    return Shared(flow.workflow(), ONE)


@_shared
def guards_that_do_not_run() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    asleep = flow.one(GUARD, "bypassed", mode=BYPASSED, model=model, clip=clip)
    _save(flow, _sample(flow, asleep, prompts, latent, "sampler"), vae)
    other, clip, vae = flow.add("CheckpointLoaderSimple", "other")
    asleep = flow.one(GUARD, "muted", mode=MUTED, model=other, clip=clip)
    _save(flow, _sample(flow, asleep, prompts, latent, "other sampler"), vae)
    return Shared(flow.workflow(), asleep=("bypassed", "muted"))


@_shared
def upscaler_and_detailer() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    prompts = _prompts(flow, clip)
    image = flow.one("VAEDecode", samples=_sample(flow, model, prompts, latent), vae=vae)
    more: dict[str, Out] = {"model": model, "positive": prompts[0], "negative": prompts[1], "vae": vae}
    large = flow.one("UltimateSDUpscale", "upscaler", image=image, **more)
    face = flow.one("FaceDetailer", "detailer", image=large, model=model, clip=clip, vae=vae, positive=prompts[0])
    flow.add("SaveImage", images=face)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "sampler, upscaler, detailer"),), stock=False)


@_shared
def pipe() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    positive, negative = _prompts(flow, clip)
    packed = flow.one("ToBasicPipe", "pack", model=model, clip=clip, vae=vae, positive=positive, negative=negative)
    model, clip, vae, positive, negative = flow.add("FromBasicPipe", "unpack", basic_pipe=packed)
    _save(flow, _sample(flow, model, (positive, negative), latent), vae)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "pack"),), stock=False)


@_shared
def pipe_into_a_subgraph() -> Shared:
    inner = Flow()
    model, _, vae, positive, negative = inner.add(
        "FromBasicPipe", "unpack", basic_pipe=inner.entrance("p", "BASIC_PIPE")
    )
    done = _sample(inner, model, (positive, negative), inner.one("EmptyLatentImage"))
    image = inner.one("VAEDecode", samples=done, vae=vae)
    flow = Flow()
    model, clip, vae, _ = _start(flow)
    positive, negative = _prompts(flow, clip)
    packed = flow.one("ToBasicPipe", "pack", model=model, clip=clip, vae=vae, positive=positive, negative=negative)
    (shown,) = flow.use(inner.as_subgraph(1, "sampling", IMAGE=image), "inside", p=packed)
    flow.add("SaveImage", images=shown)
    return Shared(flow.workflow(), (("checkpoint", "checkpoint", "pack"),), stock=False)


@_shared
def sampler_that_hands_its_model_on() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    positive, negative = _prompts(flow, clip)
    adapted = flow.one("IPAdapterAdvanced", "adapter", model=model, image=flow.one("LoadImage"))
    first = flow.add(
        "KSampler (Efficient)", "first", model=adapted, positive=positive, negative=negative, latent_image=latent
    )
    again = flow.add(
        "KSampler (Efficient)", "again", model=first[0], positive=first[1], negative=first[2], latent_image=first[3]
    )
    flow.add("SaveImage", images=again[5])
    guards = (("adapter", "checkpoint", "first"),)
    return Shared(flow.workflow(), guards, stock=False)


@_shared
def set_and_get() -> Shared:
    flow = Flow()
    model, clip, vae, latent = _start(flow)
    flow.add("SetNode", "set model", widgets=["m"], MODEL=model)
    flow.add("SetNode", "set words", widgets=["w"], CONDITIONING=flow.one("CLIPTextEncode", "prompt", clip=clip))
    model = flow.one("GetNode", "get model", widgets=["m"], outputs=["MODEL"])
    words = flow.one("GetNode", "get words", widgets=["w"], outputs=[C])
    _save(flow, _sample(flow, model, (words, words), latent), vae)
    return Shared(flow.workflow(), (("get model", "checkpoint", "sampler"),), stock=False)
