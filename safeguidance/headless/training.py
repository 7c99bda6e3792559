"""The commands `train-hgr`, `score` and `align` inside a host, for any MODEL that it loads, in one process or several.

They read the same configuration (the guide `web/docs/guides/train_a_redirector.md` explains it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from . import boot
from .boot import part
from .distributed import join, process_index, say
from .loading import MODEL_KEYS, load, read_config

RUN_KEYS = ("out", "checkpoints", "dataset", "size", "licence", "every", "save_memory")
NETWORK_KEYS = ("width", "layers")
TRAINING_KEYS = (
    "steps",
    "batch",
    "clean_share",
    "text_batch",
    "rate",
    "scale",
    "rollout_scale",
    "gate_weight",
    "clean_weight",
    "rollout_share",
    "focus",
    "reuse",
    "jitter",
    "seed",
    "patience",
)
SCORE_KEYS = ("hgr", "dataset", "split", "rate", "out", "images", "draws", "seed")
ALIGN_KEYS = (
    "hgr",
    "dataset",
    "out",
    "checkpoints",
    "rank",
    "layers",
    "harmful_share",
    "steps",
    "batch",
    "rate",
    "scale",
    "strength",
    "softness",
    "seed",
    "patience",
)
SECTIONS = {
    "": RUN_KEYS,
    "model": MODEL_KEYS,
    "training": TRAINING_KEYS,
    "network": NETWORK_KEYS,
    "score": SCORE_KEYS,
    "align": ALIGN_KEYS,
}
# those of the node; the core's own are made for the testbed
DEFAULTS = {"steps": 2000, "batch": 8, "rate": 3e-4, "scale": 3.0, "rollout_scale": 5.0, "rollout_share": 0.5}


_MODEL_FIELDS = {"clip": "model.text_encoders", "vae": "model.vae", "latent": "size", "checkpoint": "checkpoints"}
# settings of a run -> keys of the configuration that they come from
TRAINING_FIELDS = {
    **_MODEL_FIELDS,
    **{key: f"training.{key}" for key in TRAINING_KEYS},
    **{key: f"network.{key}" for key in NETWORK_KEYS},
    "heads": "network.width",
    "context_width": "model.text_encoders",
    "pooled_width": "model.text_encoders",
    "chunk": "model.text_encoders",
    "categories": "dataset",
}
ALIGN_FIELDS = {
    **_MODEL_FIELDS,
    **{key: f"align.{key}" for key in ALIGN_KEYS if key not in ("dataset", "checkpoints")},
    "alpha": "align.rank",
    "redirector": "align.hgr",
    "redirector_weights": "align.hgr",
    "threshold": "align.hgr",
}
SCORE_FIELDS = {**_MODEL_FIELDS, "split": "score.split", "rate": "score.rate"}

_T = TypeVar("_T", bool, int, float, str)


class Refused(Exception):
    """The command cannot be done; the text says why."""


@contextmanager
def _refusals(spec: Mapping[str, Any], fields: Mapping[str, str]) -> Iterator[None]:
    """Turn errors of what is done inside into what the command says.

    Raises:
        Refused: With command and configuration in front.
    """
    after_mismatch = "forget that run with --restart, or name another folder in `checkpoints`"
    try:
        with part("nodes.training.inputs").renamed_fields(fields, after_mismatch):
            yield
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        raise Refused(f"{spec['command']}, {spec['config']}: {error}") from error


def _say(text: str) -> None:
    if process_index() == 0:
        say(text)


def _value(values: Mapping[str, Any], key: str, default: _T, section: str = "") -> _T:
    """A value of the configuration, of the type of its default.

    Raises:
        InputError: It is of another type.
    """
    value, kind = values.get(key, default), type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise InputError(f"{section}{key}", f"it is {value!r}", words)
    found: _T = value
    return found


def prepare(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> tuple[dict[str, Any], Path, Any]:
    """Configuration, its folder, and the group of processes; boots the host. Every command starts with it.

    Raises:
        Refused: The configuration cannot be read.
    """
    path = Path(spec["config"])
    try:
        config = read_config(path, SECTIONS)
    except InputError as error:
        raise Refused(f"{spec['command']}, {path}: {error}") from error
    # before the host, which takes the GPU that is current then
    group = join(boot.pick_device(spec.get("device") or "auto"))
    start_host()
    return config, path.parent, group or part("safeguidance.training.distributed").SINGLE_PROCESS


def _missing(field: str, allowed: str, next_step: str = "") -> InputError:
    return InputError(field, "it is not given", allowed, next_step)


def _dataset(name: Any, folder: Path) -> Any:
    if not name:
        raise _missing("dataset", "a prompt file", "write one with `python -m safeguidance data make`")
    known = tuple(part("safeguidance.testbed.concepts").ALL_PRESETS)
    return part("safeguidance.prompts.files").read_prompts(folder / Path(str(name)).expanduser(), known)


def _out(spec: Mapping[str, Any], value: Any, folder: Path, field: str) -> Path:
    if not spec.get("out") and not value:
        raise _missing(field, "the file to write", "name it here or with --out")
    out = Path(spec["out"]) if spec.get("out") else folder / Path(str(value)).expanduser()
    if out.suffix != ".safetensors":
        raise InputError(field, f"it is {out.name!r}", "a name that ends with .safetensors")
    return out


def _restart(spec: Mapping[str, Any], checkpoints: Path, group: Any) -> None:
    """Forget an earlier run where the user says so, before any process looks for it."""
    if spec.get("restart"):
        if group.rank == 0:
            part("safeguidance.training.checkpoints").delete_checkpoint(checkpoints)
        if group.world_size > 1:
            group.barrier()


def train_hgr(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Train; return the exit code.

    Raises:
        Refused: Configuration, model or data cannot be used, or training failed.
    """
    config, folder, group = prepare(spec, start_host)
    with _refusals(spec, TRAINING_FIELDS):
        return _train(spec, config, folder, group)


def _train(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, group: Any) -> int:
    run, host = part("nodes.training.train_run"), part("nodes.host.patcher")
    out = _out(spec, config.get("out"), folder, "out")
    checkpoints = folder / Path(_value(config, "checkpoints", f"runs/{out.stem}"))
    data = run.readable(_dataset(config.get("dataset"), folder))
    settings = {**DEFAULTS, **config.get("training", {})}
    settings.setdefault("text_batch", settings["batch"])
    train_config = part("safeguidance.training.hgr_config").HGRTrainConfig(**settings)
    network = config.get("network", {})
    run_settings = run.RunSettings(
        checkpoints,
        out,
        width=_value(network, "width", 0, "network."),
        layers=_value(network, "layers", 4, "network."),
        checkpoint_every=_checkpoint_every(config),
        save_memory=_value(config, "save_memory", True),
        licence=_value(config, "licence", "not stated"),
        command="python -m safeguidance comfyui train-hgr",
    )
    loaded = load(config.get("model", {}), folder)
    training = run.Training(loaded.model, loaded.clip, data, _latent(config, loaded), loaded.vae, lambda total: _quiet)
    if training.unused:
        _say(f"{training.unused} pictures of {data.path.name} are not used: there is no VAE to encode them")
    if not training.pictures:
        train_config = replace(train_config, rollout_share=1.0)
    _say(
        f"{host.model_family(loaded.model)}, latents {list(training.shape)}, {data.path.name}: {data.counts()}, "
        f"{training.pictures} pictures, {group.world_size} processes"
    )
    _restart(spec, checkpoints, group)
    verbose = bool(spec.get("verbose")) and group.rank == 0
    lines = _Lines(train_config.steps)
    training.run(train_config, run_settings, lines, group, progress_bar=verbose)
    if group.rank == 0:
        _say(part("nodes.redirectors").describe(out))
        lines.end(out)
    return 0


def _checkpoint_every(config: Mapping[str, Any]) -> int:
    steps = _value(config, "every", 100)
    if steps < 1:
        raise InputError("every", f"it is {steps}", "1 or more")
    return steps


class _Lines:
    """A line about the losses now and then."""

    def __init__(self, steps: int) -> None:
        self.steps, self.made = steps, 0

    def __call__(self, step: int, history: list[dict[str, float]]) -> None:
        self.made += 1
        if step % max(1, self.steps // 20) == 0 or step == self.steps:
            _say(f"step {step} of {self.steps}: " + ", ".join(f"{k} {v:.4g}" for k, v in history[-1].items()))

    def end(self, out: Path) -> None:
        """What became of the file."""
        none_left = "no step was left to make; --restart trains it again"
        _say(f"written: {out}" if self.made else f"{out} is complete, {none_left}")


def _quiet(*_: Any) -> None:
    pass


def _latent(config: Mapping[str, Any], loaded: Any) -> Any:
    size = config.get("size", [512, 512])
    if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and s > 0 for s in size)):
        allowed = "width and height in pixels, such as [512, 512]"
        raise InputError("size", f"it is {size!r}", allowed)
    latent = boot.host_nodes().EmptyLatentImage().generate(*size, 1)[0]
    return part("nodes.host.model").latent_for(loaded.model, latent)


def score(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Score a prompt file; write JSON; return the exit code.

    Raises:
        Refused: Configuration, model, redirector or data cannot be used.
    """
    config, folder, group = prepare(spec, start_host)
    with _refusals(spec, SCORE_FIELDS):
        return _score(spec, config, folder, group)


def _score(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, group: Any) -> int:
    wanted = {**config.get("score", {}), **{key: spec[key] for key in ("hgr", "split") if spec.get(key)}}
    redirector = _redirector("score", wanted, config, folder)
    data = _dataset(wanted.get("dataset") or config.get("dataset"), folder)
    out = Path(spec.get("out") or folder / Path(_value(wanted, "out", "score.json", "score.")).expanduser())
    loaded = load(config.get("model", {}), folder)
    encoder = part("nodes.host.encoding").ClipEncoder(loaded.clip)
    differs = part("nodes.redirectors").check_model(redirector, loaded.model, "score.hgr")
    if differs:
        _say(f"WARNING: {differs}")
    result = part("safeguidance.training.scores").score_file(
        redirector,
        data,
        lambda text: encoder([text]),
        _value(wanted, "split", "", "score."),
        _value(wanted, "rate", 0.01, "score."),
        group,
    )
    if wanted.get("images"):
        _score_pictures(result, redirector, encoder, loaded, data, config, wanted)
    if group.rank == 0:
        result = {"data": data.path.name, "data hash": data.digest, "warning": differs, **result}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        for key, value in result["summary"].items():
            _say(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")
        _say(f"written: {out}")
    return 0


def _redirector(section: str, wanted: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> Any:
    name = wanted.get("hgr") or config.get("out")
    if not name:
        raise _missing(f"{section}.hgr", "an HGR file", "name it here or with --hgr")
    found = part("safeguidance.redirector.weights").load_hgr(folder / Path(name).expanduser())
    return part("nodes.redirectors").ManagedRedirector(found)


def _score_pictures(
    result: dict[str, Any], redirector: Any, encoder: Any, loaded: Any, data: Any, config: Any, wanted: Any
) -> None:
    """Add an image score to the texts whose rows name a picture (each process does all of them)."""
    if loaded.vae is None:
        raise _missing("model.vae", "the VAE of the model, which pictures need", "name its file")
    host_model, detect = part("nodes.host.model"), part("nodes.detect")
    shape = _latent(config, loaded).shape
    factor = host_model.compression(loaded.vae)
    rows = {row["line"]: row for row in result["texts"] if row["line"] and row["category"]}
    rows.update({row["line"]: row for row in result["texts"] if row["line"] not in rows})
    everything = part("safeguidance.prompts.pictures").read_pictures(data, shape[-1] * factor, shape[-2] * factor, "")
    for example, pixels in everything:
        if (row := rows.get(example.line)) is not None:
            judge = detect.picture_judge(
                redirector,
                encoder,
                loaded.model,
                shape[1:],
                [encoder([example.prompt])],
                encoder([""]),
                _value(wanted, "draws", detect.DRAWS, "score."),
                _value(wanted, "seed", 0, "score."),
            )
            row["image"] = judge(host_model.encoded(loaded.vae, pixels[None]))[0]


def align(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Train a LoRA from prompts without labels; return the exit code.

    Raises:
        Refused: Configuration, model, redirector or prompts cannot be used, or training failed.
    """
    config, folder, group = prepare(spec, start_host)
    with _refusals(spec, ALIGN_FIELDS):
        return _align(spec, config, folder, group)


def _align(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, group: Any) -> int:
    run, host = part("nodes.training.align_run"), part("nodes.host.patcher")
    wanted = {**config.get("align", {}), **{key: spec[key] for key in ("hgr",) if spec.get(key)}}
    out = _out(spec, wanted.pop("out", None), folder, "align.out")
    redirector = _redirector("align", wanted, config, folder)
    wanted.pop("hgr", None)
    name = wanted.pop("dataset", config.get("dataset"))
    if not name:
        raise _missing("dataset", "a file of prompts")
    data = part("safeguidance.training.align_data").read_unlabelled(folder / Path(str(name)).expanduser())
    settings = run.AlignSettings(
        folder / Path(_value(wanted, "checkpoints", f"runs/{out.stem}", "align.")),
        out,
        _value(wanted, "rank", 16, "align."),
        _value(wanted, "layers", "attention", "align."),
        _value(wanted, "harmful_share", 0.5, "align."),
        checkpoint_every=_checkpoint_every(config),
        save_memory=_value(config, "save_memory", True),
        licence=_value(config, "licence", "not stated"),
        command="python -m safeguidance comfyui align",
    )
    own = ("checkpoints", "rank", "layers", "harmful_share")
    align_config = part("safeguidance.training.align").AlignConfig(
        **{key: value for key, value in wanted.items() if key not in own}
    )
    loaded = load(config.get("model", {}), folder)
    shape = tuple(_latent(config, loaded).shape[1:])
    alignment = run.Alignment(loaded.model, loaded.clip, redirector, data, shape, lambda total: _quiet)
    _say(f"{host.model_family(loaded.model)}, {len(data.texts)} prompts of {data.source}, {group.world_size} processes")
    _restart(spec, settings.checkpoints, group)
    lines = _Lines(align_config.steps)
    alignment.run(align_config, settings, lines, group)
    if group.rank == 0:
        for line in part("safeguidance.training.lora").load_lora(out)[1].lines():
            _say(line)
        lines.end(out)
    return 0
