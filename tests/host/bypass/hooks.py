"""Graphs that change the model or the text encoder for a part of the prompt or of the run: hooks, and boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.host.bypass.armed import CUP
from tests.host.bypass.graphs import Graph, node, plain
from tests.host.small_lora import write_lora

LORA = "allowed.safetensors"


def put_lora(base: Path) -> None:
    """Put a LoRA that the suite's policy allows where a host looks for it."""
    write_lora(base / "models" / "loras" / LORA)


def _hook(model: float, clip: float) -> Graph:
    return node("CreateHookLora", lora_name=LORA, strength_model=model, strength_clip=clip)


def _properties(text: str, **more: Graph) -> Graph:
    """The prompt with the hooks h."""
    put = node("ConditioningSetProperties", cond_NEW=["p", 0], strength=1.0, set_cond_area="default", hooks=["h", 0])
    return {**plain(text, positive=["c", 0]), "h": _hook(1.0, 0.0), "c": put, **more}


def _keyframed(text: str) -> Graph:
    """The hook begins in the middle of the run."""
    frames = {
        "a": node("CreateHookKeyframe", strength_mult=0.0, start_percent=0.0),
        "b": node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.5, prev_hook_kf=["a", 0]),
        "k": node("SetHookKeyframes", hooks=["h", 0], hook_kf=["b", 0]),
    }
    found = _properties(text, **frames)
    found["c"]["inputs"]["hooks"] = ["k", 0]
    return found


def _both(text: str) -> Graph:
    """Hooks on the prompt and on the negative prompt."""
    pair = node(
        "PairConditioningSetProperties",
        positive_NEW=["p", 0],
        negative_NEW=["n", 0],
        strength=1.0,
        set_cond_area="default",
        hooks=["h", 0],
    )
    found = {**plain(text, positive=["c", 0]), "h": _hook(1.0, 0.0), "c": pair}
    found["s"]["inputs"]["negative"] = ["c", 1]
    return found


def _default(text: str) -> Graph:
    """A harmless prompt in one half, the other one as what holds everywhere else."""
    area = {"conditioning": ["q", 0], "width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
    return {
        **plain(text, positive=["c", 0]),
        "q": node("CLIPTextEncode", text=CUP, clip=["m", 1]),
        "e": node("ConditioningSetAreaPercentage", **area),
        "h": _hook(0.5, 0.0),
        "c": node("ConditioningSetDefaultCombine", cond=["e", 0], cond_DEFAULT=["p", 0], hooks=["h", 0]),
    }


def _combined(text: str) -> Graph:
    """A second prompt, with hooks, beside a harmless one."""
    join = node(
        "ConditioningSetPropertiesAndCombine",
        cond=["q", 0],
        cond_NEW=["p", 0],
        strength=1.0,
        set_cond_area="default",
        hooks=["h", 0],
    )
    return {**_properties(text), "q": node("CLIPTextEncode", text=CUP, clip=["m", 1]), "c": join}


def _clip(scheduled: bool) -> Callable[[str], Graph]:
    def make(text: str) -> Graph:
        put = node("SetClipHooks", clip=["m", 1], apply_to_conds=True, schedule_clip=scheduled, hooks=["h", 0])
        encode = node("CLIPTextEncode", text=text, clip=["t", 0])
        return {**plain(text), "h": _hook(1.0, 1.0), "t": put, "p": encode}

    return make


def _boxes(text: str) -> Graph:
    """The harmful text in a box of a harmless prompt."""
    box = {"width": 24, "height": 24, "x": 0, "y": 0}
    model = {"clip": ["m", 1], "gligen_textbox_model": ["g", 0]}
    put = node("GLIGENTextBoxApply", conditioning_to=["p", 0], text=text, **model, **box)
    return {**plain(CUP, positive=["c", 0]), "g": node("BypassBoxes"), "c": put}


SHAPES: dict[str, tuple[Callable[[str], Graph], str, bool, bool]] = {
    "a hooked LoRA": (_properties, "guarded", True, False),
    "a hooked LoRA from the middle on": (_keyframed, "guarded", True, False),
    "hooks on both prompts": (_both, "guarded", True, False),
    "a default prompt with a hook": (_default, "guarded", True, False),
    "a second prompt with a hook": (_combined, "guarded", True, False),
    "a hooked text encoder": (_clip(False), "refused", False, False),
    "a text encoder with scheduled hooks": (_clip(True), "refused", False, False),
    "GLIGEN boxes": (_boxes, "refused", False, True),
}
"""By name: the graph, how it ends with a harmful prompt, whether a harmless one is drawn, whether it needs our pack."""
