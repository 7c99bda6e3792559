"""The commands `train-hgr`, `score` and `align` inside a host, for any MODEL that it loads, alone or in a team.

They read the same configuration (the guide `web/docs/guides/train_a_redirector.md` explains it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import boot
from .boot import part
from .distributed import AccelerateTeam, join, process_index
from .loading import MODEL_KEYS, load, read_config

RUN_KEYS = ("out", "checkpoints", "dataset", "size", "licence", "every", "save_memory")
NETWORK_KEYS = ("width", "layers")
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
    "training": (),
    "network": NETWORK_KEYS,
    "score": SCORE_KEYS,
    "align": ALIGN_KEYS,
}
# those of the node; the core's own are made for the testbed
DEFAULTS = {"steps": 2000, "batch": 8, "rate": 3e-4, "scale": 3.0, "rollout_scale": 5.0, "rollout_share": 0.5}


class Refused(Exception):
    """The command can not be done; the text says why."""


def _say(text: str) -> None:
    if process_index() == 0:
        print(text, flush=True)


def prepare(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> tuple[dict[str, Any], Path, Any]:
    """Configuration, its folder, and the team; boots the host. Every door begins so.

    Raises:
        Refused: The configuration can not be read.
    """
    path = Path(spec["config"])
    try:
        config = read_config(path, SECTIONS)
    except ValueError as error:
        raise Refused(str(error)) from error
    # before the host, which takes the GPU that is current then
    team: AccelerateTeam | None = join(boot.pick_device(spec.get("device") or "auto"))
    start_host()
    return config, path.parent, team or part("safeguidance.training.distributed").ALONE


def _dataset(name: Any, folder: Path) -> Any:
    if not name:
        raise ValueError("dataset: not given; name a prompt file, as `python -m safeguidance data make` writes it")
    known = tuple(part("safeguidance.testbed.concepts").ALL_PRESETS)
    return part("safeguidance.prompts.files").read_prompts(folder / Path(str(name)).expanduser(), known)


def _out(spec: Mapping[str, Any], value: Any, folder: Path) -> Path:
    if spec.get("out"):
        return Path(spec["out"])
    if not value:
        raise ValueError("out: not given; name the file to write, here or with --out")
    return folder / Path(str(value)).expanduser()


def train_hgr(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Train; return the exit code.

    Raises:
        Refused: Configuration, model or data can not be used, or training failed.
    """
    config, folder, team = prepare(spec, start_host)
    try:
        return _train(spec, config, folder, team)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        raise Refused(f"train-hgr, {spec['config']}: {error}") from error


def _train(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, team: Any) -> int:
    run, host = part("nodes.training.train_run"), part("nodes.host.patcher")
    out = _out(spec, config.get("out"), folder)
    if out.suffix != ".safetensors":
        raise ValueError(f"out is {out.name!r}; its name must end with .safetensors")
    checkpoints = folder / Path(config.get("checkpoints", f"runs/{out.stem}"))
    data = run.readable(_dataset(config.get("dataset"), folder))
    settings = {**DEFAULTS, **config.get("training", {})}
    settings.setdefault("text_batch", settings["batch"])
    train_config = part("safeguidance.training.hgr_config").HGRTrainConfig
    given = train_config(**settings)
    loaded = load(config.get("model", {}), folder)
    training = run.Training(
        loaded.model, loaded.clip, data, _latent(config, loaded), loaded.vae, lambda total: _quiet
    )
    if training.unused:
        _say(f"{training.unused} pictures of {data.path.name} are not used: there is no VAE to encode them")
    if not training.pictures:
        given = train_config(**{**settings, "rollout_share": 1.0})
    network = {name: int(config.get("network", {}).get(name, value)) for name, value in (("width", 0), ("layers", 4))}
    _say(
        f"{host.model_family(loaded.model)}, latents {list(training.shape)}, {data.path.name}: {data.counts()}, "
        f"{training.pictures} pictures, {team.count} processes"
    )
    run_settings = run.RunSettings(
        checkpoints,
        out,
        every=int(config.get("every", 100)),
        save_memory=bool(config.get("save_memory", True)),
        licence=str(config.get("licence", "not stated")),
        command="python -m safeguidance comfyui train-hgr",
        **network,
    )
    training.run(given, run_settings, _Lines(given.steps), team, bar=bool(spec.get("verbose")) and team.rank == 0)
    if team.rank == 0:
        _say(part("nodes.redirectors").describe(out))
        _say(f"written: {out}")
    return 0


class _Lines:
    """A line about the losses now and then."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int, history: list[dict[str, float]]) -> None:
        if step % max(1, self.steps // 20) == 0 or step == self.steps:
            _say(f"step {step} of {self.steps}: " + ", ".join(f"{k} {v:.4g}" for k, v in history[-1].items()))


def _quiet(*_: Any) -> None:
    pass


def _latent(config: Mapping[str, Any], loaded: Any) -> Any:
    size = config.get("size", [512, 512])
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise ValueError(f"size is {size!r}; allowed are width and height in pixels, such as [512, 512]")
    latent = boot.host_nodes().EmptyLatentImage().generate(*size, 1)[0]
    return part("nodes.host.model").latent_for(loaded.model, latent)


def score(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Score a prompt file; write JSON; return the exit code.

    Raises:
        Refused: Configuration, model, redirector or data can not be used.
    """
    config, folder, team = prepare(spec, start_host)
    try:
        return _score(spec, config, folder, team)
    except (ValueError, TypeError, OSError) as error:
        raise Refused(f"score, {spec['config']}: {error}") from error


def _score(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, team: Any) -> int:
    wanted = {**config.get("score", {}), **{key: spec[key] for key in ("hgr", "split") if spec.get(key)}}
    redirector = _redirector("score", wanted, config, folder)
    data = _dataset(wanted.get("dataset") or config.get("dataset"), folder)
    out = _out(spec, wanted.get("out", "score.json"), folder)
    loaded = load(config.get("model", {}), folder)
    encoder = part("nodes.host.encoding").ClipEncoder(loaded.clip)
    differs = part("nodes.redirectors").check_model(redirector, loaded.model, "score.hgr")
    if differs:
        _say(f"WARNING: {differs}")
    result = part("safeguidance.training.scores").score_file(
        redirector,
        data,
        lambda text: encoder([text]),
        str(wanted.get("split", "")),
        float(wanted.get("rate", 0.01)),
        team,
    )
    if wanted.get("images"):
        _score_pictures(result, redirector, encoder, loaded, data, config, wanted)
    if team.rank == 0:
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
        raise ValueError(f"{section}.hgr: not given; name an HGR file, here or with --hgr")
    found = part("safeguidance.redirector.weights").load_hgr(folder / Path(name).expanduser())
    return part("nodes.redirectors").ManagedRedirector(found)


def _score_pictures(
    result: dict[str, Any], redirector: Any, encoder: Any, loaded: Any, data: Any, config: Any, wanted: Any
) -> None:
    """Add an image score to the texts whose rows name a picture (each process does all of them)."""
    if loaded.vae is None:
        raise ValueError("model.vae: there is none in the file; pictures need the VAE of the model, name it")
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
                int(wanted.get("draws", 6)),
                int(wanted.get("seed", 0)),
            )
            row["image"] = judge(host_model.encoded(loaded.vae, pixels[None]))[0]


def align(spec: Mapping[str, Any], start_host: Callable[[], Any]) -> int:
    """Train a LoRA from prompts without labels; return the exit code.

    Raises:
        Refused: Configuration, model, redirector or prompts can not be used, or training failed.
    """
    config, folder, team = prepare(spec, start_host)
    try:
        return _align(spec, config, folder, team)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        raise Refused(f"align, {spec['config']}: {error}") from error


def _align(spec: Mapping[str, Any], config: dict[str, Any], folder: Path, team: Any) -> int:
    run, host = part("nodes.training.align_run"), part("nodes.host.patcher")
    wanted = {**config.get("align", {}), **{key: spec[key] for key in ("hgr",) if spec.get(key)}}
    out = _out(spec, wanted.pop("out", None), folder)
    if out.suffix != ".safetensors":
        raise ValueError(f"align.out is {out.name!r}; its name must end with .safetensors")
    redirector = _redirector("align", wanted, config, folder)
    wanted.pop("hgr", None)
    name = wanted.pop("dataset", config.get("dataset"))
    if not name:
        raise ValueError("dataset: not given; name a file of prompts")
    data = part("safeguidance.training.align_data").read_unlabelled(folder / Path(str(name)).expanduser())
    settings = run.AlignSettings(
        folder / Path(wanted.pop("checkpoints", f"runs/{out.stem}")),
        out,
        int(wanted.pop("rank", 16)),
        str(wanted.pop("layers", "attention")),
        float(wanted.pop("harmful_share", 0.5)),
        every=int(config.get("every", 100)),
        save_memory=bool(config.get("save_memory", True)),
        licence=str(config.get("licence", "not stated")),
        command="python -m safeguidance comfyui align",
    )
    given = part("safeguidance.training.align").AlignConfig(**wanted)
    loaded = load(config.get("model", {}), folder)
    shape = tuple(_latent(config, loaded).shape[1:])
    alignment = run.Alignment(loaded.model, loaded.clip, redirector, data, shape, lambda total: _quiet)
    _say(f"{host.model_family(loaded.model)}, {len(data.texts)} prompts of {data.source}, {team.count} processes")
    alignment.run(given, settings, _Lines(given.steps), team)
    if team.rank == 0:
        for line in part("safeguidance.training.lora").load_lora(out)[1].lines():
            _say(line)
        _say(f"written: {out}")
    return 0
