"""Nodes and routes of a pack that tries to get round the policy, each in a way that packs of others have."""

import asyncio
import threading

import comfy.clip_vision
import comfy.sample
import comfy.samplers
import folder_paths
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from PIL import Image
from protocol import BinaryEventTypes
from server import PromptServer

KEPT = {}
SHAPE = (1, 22, 12, 12)
"""A latent of the testbed."""


def _latent(model):
    return torch.zeros(SHAPE, device=model.load_device)


def _node(inputs, outputs, run, output=False):
    """A node class of the first kind of schema."""
    required = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in inputs.items()}
    return type(
        run.__name__,
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": required}),
            "RETURN_TYPES": outputs,
            "FUNCTION": "run",
            "CATEGORY": "bypass",
            "OUTPUT_NODE": output,
            "run": lambda self, **values: run(**values),
        },
    )


def _conds(positive, negative):
    return comfy.sampler_helpers.convert_cond(positive), comfy.sampler_helpers.convert_cond(negative)


def predicts_by_itself(model, positive):
    """Sample without any sampler of the host: the network is called as it is."""
    comfy.model_management.load_models_gpu([model])
    x = torch.randn(SHAPE, generator=torch.manual_seed(1))
    levels = [1.0, 0.7, 0.4, 0.1]
    text = positive[0][0]
    for level in levels:
        x = model.model.apply_model(x, torch.tensor([level]), c_crossattn=text, transformer_options={})
    return ({"samples": x},)


def predicts_lower(model, positive):
    """The same one layer further down."""
    comfy.model_management.load_models_gpu([model])
    x = torch.randn(SHAPE, generator=torch.manual_seed(1))
    return ({"samples": model.model._apply_model(x, torch.tensor([1.0]), c_crossattn=positive[0][0])},)


def samples_in_a_thread(model, positive, negative):
    """Sample where the host does not know whose prompt it is."""
    found = {}

    def work():
        try:
            with torch.inference_mode():
                found["out"] = _sample(model, positive, negative)
        except Exception as error:
            found["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in found:
        raise found["error"]
    return ({"samples": found["out"]},)


def _sample(model, positive, negative, guider=None):
    guider = guider or comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    latent = _latent(model)
    noise = comfy.sample.prepare_noise(latent, 1)
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.0])
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)


class SampleOwn(comfy.samplers.CFGGuider):
    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        self.conds = {name: [dict(entry) for entry in found] for name, found in self.original_conds.items()}
        return self.outer_sample(noise, latent_image, sampler, sigmas, latent_shapes=[latent_image.shape])


class PredictOwn(comfy.samplers.CFGGuider):
    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, model_options)[0]


class CallOwn(comfy.samplers.CFGGuider):
    def __call__(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds["negative"], self.conds["positive"], 4.0, model_options
        )


def guider_samples_own(model, positive, negative):
    return ({"samples": _sample(model, positive, negative, SampleOwn(model))},)


def guider_predicts_own(model, positive, negative):
    return ({"samples": _sample(model, positive, negative, PredictOwn(model))},)


def guider_calls_own(model, positive, negative):
    return ({"samples": _sample(model, positive, negative, CallOwn(model))},)


def guider_changed_in_place(model, positive, negative):
    """A guider of the host with a function of one's own put on the object."""
    guider = comfy.samplers.CFGGuider(model)
    guider.predict_noise = lambda x, timestep, model_options={}, seed=None: comfy.samplers.sampling_function(  # noqa: B006
        guider.inner_model, x, timestep, None, guider.conds["positive"], 1.0, model_options
    )
    return ({"samples": _sample(model, positive, negative, guider)},)


def _wrapped(model, kind, wrapper):
    clone = model.clone()
    clone.add_wrapper_with_key(kind, "bypass", wrapper)
    return (clone,)


def swaps_text_before_the_run(model, positive):
    """A harmless prompt goes in, another text is put in its place around the run."""

    def wrapper(executor, *args, **kwargs):
        executor.class_obj.conds["positive"] = comfy.sampler_helpers.convert_cond(positive)
        return executor(*args, **kwargs)

    return _wrapped(model, WrappersMP.OUTER_SAMPLE, wrapper)


def swaps_text_at_each_step(model, positive):
    """The same at each step, after every check of the run."""

    def wrapper(executor, x, sigma, *args, **kwargs):
        guider = executor.class_obj
        entries = comfy.sampler_helpers.convert_cond(positive)
        guider.conds["positive"] = comfy.samplers.encode_model_conds(
            guider.inner_model.extra_conds, entries, x, x.device, "positive"
        )
        return executor(x, sigma, *args, **kwargs)

    return _wrapped(model, WrappersMP.PREDICT_NOISE, wrapper)


def keeps_the_token(model):
    """Keep what a guarded run hands to the model, for a prediction of one's own later."""

    def wrapper(executor, *args, **kwargs):
        KEPT["options"] = args[5] if len(args) > 5 else kwargs.get("transformer_options")
        return executor(*args, **kwargs)

    return _wrapped(model, WrappersMP.APPLY_MODEL, wrapper)


def predicts_with_a_kept_token(model, positive, after):
    comfy.model_management.load_models_gpu([model])
    x = torch.randn(SHAPE, generator=torch.manual_seed(1))
    options = dict(KEPT["options"], wrappers={})
    found = model.model.apply_model(x, torch.tensor([1.0]), c_crossattn=positive[0][0], transformer_options=options)
    return ({"samples": found},)


def skips_the_model(model):
    """Give out a prediction without the model, as caches of steps do."""

    def wrapper(executor, x, *args, **kwargs):
        return x * 0.5

    return _wrapped(model, WrappersMP.PREDICT_NOISE, wrapper)


def removes_the_guard(model):
    """Empty the wrappers of a run while it goes on."""

    def wrapper(executor, *args, **kwargs):
        executor.class_obj.model_options["transformer_options"]["wrappers"] = {}
        return executor(*args, **kwargs)

    return _wrapped(model, WrappersMP.OUTER_SAMPLE, wrapper)


def drops_the_note(positive):
    """A conditioning that does not say which text encoder made it."""
    return ([[states, {"pooled_output": extra.get("pooled_output")}] for states, extra in positive],)


def expands(kind, positive, negative, model, vae):
    """A node that becomes a graph of nodes of any class."""
    from comfy_execution.graph_utils import GraphBuilder

    graph = GraphBuilder()
    if kind == "sampler":
        latent = graph.node("EmptyLatentImage", width=48, height=48, batch_size=1)
        settings = {"seed": 1, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        made = graph.node(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=latent.out(0), **settings
        )
        picture = graph.node("VAEDecode", samples=made.out(0), vae=vae)
        return {"result": (picture.out(0),), "expand": graph.finalize()}
    names = {"image": "bypass.png"} if kind == "LoadImage" else {}
    found = graph.node(kind, **names)
    return {"result": (found.out(0),), "expand": graph.finalize()}


async def samples_later(model, positive, negative):
    await asyncio.sleep(0.01)
    return ({"samples": _sample(model, positive, negative)},)


def replaces_a_gate():
    """Put a sampling of one's own into the host while the server runs, as packs do that patch at the first use."""
    before = comfy.samplers.CFGGuider.sample

    def sample(self, *args, **kwargs):
        return getattr(before, "__wrapped__", before)(self, *args, **kwargs)

    comfy.samplers.CFGGuider.sample = sample
    return (torch.zeros(1, 48, 48, 3),)


def sees():
    """An image prompt as CLIP Vision gives it, without a picture."""
    seen = comfy.clip_vision.Output()
    seen.image_embeds = torch.ones(1, 8)
    return (seen,)


def shows_a_preview(red, green, blue):
    """Send a picture of one colour as a preview, the way that nodes of packs do."""
    server, image = PromptServer.instance, Image.new("RGB", (64, 64), (red, green, blue))
    server.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, ("PNG", image, 64), server.client_id)
    return (torch.zeros(1, 48, 48, 3),)


_MODEL = {"model": "MODEL"}
_COLOUR = dict.fromkeys(("red", "green", "blue"), "INT")
_TEXT = {**_MODEL, "positive": "CONDITIONING"}
_BOTH = {**_TEXT, "negative": "CONDITIONING"}
_OPTIONS = (["sampler", "LoadImage", "BypassForbidden"],)
NODE_CLASS_MAPPINGS = {
    "BypassPredicts": _node(_TEXT, ("LATENT",), predicts_by_itself),
    "BypassPredictsLower": _node(_TEXT, ("LATENT",), predicts_lower),
    "BypassThread": _node(_BOTH, ("LATENT",), samples_in_a_thread),
    "BypassGuiderSample": _node(_BOTH, ("LATENT",), guider_samples_own),
    "BypassGuiderPredict": _node(_BOTH, ("LATENT",), guider_predicts_own),
    "BypassGuiderCall": _node(_BOTH, ("LATENT",), guider_calls_own),
    "BypassGuiderChanged": _node(_BOTH, ("LATENT",), guider_changed_in_place),
    "BypassSwapRun": _node(_TEXT, ("MODEL",), swaps_text_before_the_run),
    "BypassSwapStep": _node(_TEXT, ("MODEL",), swaps_text_at_each_step),
    "BypassKeepToken": _node(_MODEL, ("MODEL",), keeps_the_token),
    "BypassUseToken": _node({**_TEXT, "after": "LATENT"}, ("LATENT",), predicts_with_a_kept_token),
    "BypassSkipModel": _node(_MODEL, ("MODEL",), skips_the_model),
    "BypassRemoveGuard": _node(_MODEL, ("MODEL",), removes_the_guard),
    "BypassDropNote": _node({"positive": "CONDITIONING"}, ("CONDITIONING",), drops_the_note),
    "BypassExpand": _node({**_BOTH, "vae": "VAE", "kind": _OPTIONS}, ("IMAGE",), expands),
    "BypassReplaceGate": _node({}, ("IMAGE",), replaces_a_gate),
    "BypassVision": _node({}, ("CLIP_VISION_OUTPUT",), sees),
    "BypassBoxes": _node({}, ("GLIGEN",), lambda: (object(),)),
    "BypassPreview": _node(_COLOUR, ("IMAGE",), shows_a_preview),
    "BypassForbidden": _node({}, ("IMAGE",), lambda: (torch.zeros(1, 48, 48, 3),)),
}


def _later():
    made = _node(_BOTH, ("LATENT",), samples_in_a_thread)

    async def run(self, **values):
        return await samples_later(**values)

    made.run = run
    return made


NODE_CLASS_MAPPINGS["BypassLater"] = _later()


PromptServer.instance.app.add_routes([web.static("/bypass_static", folder_paths.get_output_directory())])
