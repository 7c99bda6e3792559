"""Runners and judges on a Ray cluster (extra ``cluster``): rows are calls of its actors, judges get batches there.

Retries and failover are those of ``schedule``: an actor or machine that dies is a lost runner, and is made again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from ..headless.definitions import ObjectInfo
from ..headless.hosts import PACK_ROOT
from .config import RunConfig
from .graph import Api
from .judges.interface import Judge, Verdict
from .runner import GraphRefused, Outcome, Progress, Runner, RunnerLost, RunnerUnusable

_START = 600.0
"""Seconds that an actor may take to be placed and to answer for the first time."""


def connect_ray(address: str) -> Any:
    """Join a cluster; its workers read this package, the pack and the weights from the same folder as here.

    Args:
        address: as ``ray.init`` takes it: "auto", "HOST:PORT", "ray://HOST:10001", or "local" for one on this machine.

    Raises:
        InputError: if Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--ray",
            "the package ray is missing",
            "an interpreter that has it",
            "python -m pip install 'safeguidance[cluster]'",
        ) from error
    _check_reachable(address)
    folder = {"env_vars": {"PYTHONPATH": str(PACK_ROOT)}}
    try:
        ray.init(address=address, runtime_env=folder, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InputError("--ray", f"{address!r}: {error}", "the address of a running cluster, or local") from error
    return ray


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would wait for minutes.

    Raises:
        InputError: naming the address.
    """
    host, _, port = address.removeprefix("ray://").partition(":")
    if not port:
        return
    try:
        socket.create_connection((host, int(port)), 10).close()
    except (OSError, ValueError) as error:
        allowed = "the address of a running cluster, auto, or local"
        raise InputError("--ray", f"{address!r}: {error}", allowed, "start one with `ray start --head`") from error


class Work:
    """What an actor does with a runner of its own; answers are plain, so that nothing but they must be sent."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = dict(spec)
        self._runner: Runner | None = None

    def _made(self) -> Runner:
        if self._runner is None:
            self._runner = make_runner(self._spec)
        return self._runner

    def call(self, name: str, *values: Any) -> tuple[str, Any]:
        """Call the runner: what came of it ("done", "refused", "lost", "unusable"), and the answer or why."""
        try:
            return "done", getattr(self._made(), name)(*values)
        except GraphRefused as error:
            return "refused", str(error)
        except RunnerLost as error:
            return "lost", str(error)
        except (RunnerUnusable, InputError) as error:
            return "unusable", str(error)


def make_runner(spec: Mapping[str, Any]) -> Runner:
    """The runner that a description asks for.

    Raises:
        RunnerUnusable: if what it needs is not on this machine.
    """
    from ..headless.hosts import HostError, require_host
    from .client import ServerRunner
    from .headless_runner import HeadlessRunner

    if "url" in spec:
        return ServerRunner(spec["url"], spec["timeout"])
    pack = spec["options"].get("pack")
    if pack and not Path(pack).is_dir():
        raise RunnerUnusable(f"the pack's folder {pack} is not on this machine; put it there, or share the folder")
    try:
        host = require_host(spec["comfyui"] or None)
    except HostError as error:
        raise RunnerUnusable(str(error)) from error
    return HeadlessRunner(host, spec["number"], dict(spec["options"]), spec["timeout"])


def runner_specs(run: RunConfig) -> list[dict[str, Any]]:
    """Descriptions of the runners of a configuration, which can be sent to another machine."""
    if run.servers:
        return [{"url": url, "timeout": run.timeout} for url in run.servers]
    options = {"pack": str(PACK_ROOT) if run.pack else None, "device": run.device, "host_models": True}
    return [
        {"comfyui": run.comfyui, "number": number, "options": options, "timeout": run.timeout}
        for number in range(1, run.workers + 1)
    ]


class RayRunner:
    """A runner in an actor of a cluster; made again where the actor or its machine is lost.

    Args:
        ray: the module, connected.
        spec: see ``runner_specs``.
        name: what rows and messages call it.
        resources: what Ray reserves for it: num_cpus, num_gpus.
    """

    def __init__(self, ray: Any, spec: Mapping[str, Any], name: str, resources: Mapping[str, float]) -> None:
        self.name, self._ray, self._spec = name, ray, dict(spec)
        self._resources = dict(resources)
        self._actor: Any = None

    def _call(self, seconds: float, name: str, *values: Any) -> Any:
        if self._actor is None:
            self._actor = self._ray.remote(Work).options(**self._resources).remote(self._spec)
        try:
            what, found = self._ray.get(self._actor.call.remote(name, *values), timeout=seconds)
        except self._ray.exceptions.GetTimeoutError as error:
            self._drop()
            found = f"{self.name}: the cluster gave no answer in {seconds:g} s; are {self._resources} free in it?"
            raise RunnerLost(found) from error
        except self._ray.exceptions.RayError as error:
            self._drop()
            raise RunnerLost(f"{self.name}: {str(error).splitlines()[0]}") from error
        kinds = {"refused": GraphRefused, "lost": RunnerLost, "unusable": RunnerUnusable}
        if what in kinds:
            raise kinds[what](found)
        return found

    def _drop(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)

    def object_info(self) -> ObjectInfo:
        """Node definitions of its ComfyUI.

        Raises:
            RunnerLost: if it does not answer.
            RunnerUnusable: if it never will.
        """
        found: ObjectInfo = self._call(_START, "object_info")
        return found

    def facts(self) -> dict[str, Any]:
        """Version and device of its ComfyUI."""
        return {**self._call(_START, "facts"), "ray": self._ray.__version__}

    def run(self, graph: Api, output: str, progress: Progress | None = None) -> Outcome:
        """Run a workflow there; progress is not told."""
        # the runner itself has the time limit of a picture; this one is for a machine that is gone without a word
        found: Outcome = self._call(self._spec["timeout"] + _START, "run", graph, output)
        return found

    def close(self) -> None:
        """End the actor."""
        if self._actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.call.remote("close"), timeout=3)
        self._drop()


def ray_runners(ray: Any, run: RunConfig) -> list[RayRunner]:
    """One actor for each runner of a configuration: a GPU each for those that sample, where the cluster has any."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    runners = []
    for number, spec in enumerate(runner_specs(run), 1):
        samples = "url" not in spec
        resources = {"num_cpus": 1 if samples else 0, "num_gpus": 1 if samples and gpus else 0}
        runners.append(RayRunner(ray, spec, spec.get("url") or f"ray worker {number}", resources))
    return runners


class _JudgeWork:
    """What an actor does with a judge of its own."""

    def __init__(self, spec: Any) -> None:
        from .judges.loading import make_judge

        self._judge = make_judge(spec)

    def facts(self) -> tuple[str, str, tuple[str, ...], float]:
        """Name, digest, categories and threshold."""
        return self._judge.name, self._judge.digest, tuple(self._judge.categories), float(self._judge.threshold)

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
        """Verdicts of a batch."""
        return self._judge.judge(pictures, prompts)


class RayJudge:
    """A judge in an actor of a cluster.

    Args:
        ray: the module, connected.
        spec: as ``judges.load`` takes it.
        gpus: GPUs that Ray reserves for it.

    Raises:
        InputError: if the judge cannot be made there.
    """

    def __init__(self, ray: Any, spec: Any, gpus: int) -> None:
        self._ray = ray
        self._actor = ray.remote(_JudgeWork).options(num_cpus=0, num_gpus=gpus, max_restarts=3, max_task_retries=1)
        self._actor = self._actor.remote(spec)
        try:
            self.name, self.digest, self.categories, self.threshold = ray.get(
                self._actor.facts.remote(), timeout=_START
            )
        except (ray.exceptions.RayError, TimeoutError) as error:
            cause = getattr(error, "cause", None) or error
            raise InputError(
                "judges", f"{spec!r} cannot be made on the cluster: {cause}", "judges that load"
            ) from error

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
        """Verdicts of a batch, made there."""
        found: list[list[Verdict]] = self._ray.get(self._actor.judge.remote(list(pictures), list(prompts)))
        return found


def ray_judges(ray: Any, specs: Sequence[Any], run: RunConfig) -> list[Judge]:
    """Judges of a configuration on a cluster, a GPU each where some are left beside those that sample.

    Raises:
        InputError: if one cannot be made, or two have the same name.
    """
    sampling = 0 if run.servers else run.workers
    free = math.floor(ray.cluster_resources().get("GPU", 0)) - sampling
    judges: list[Judge] = []
    for spec in specs:
        judge = RayJudge(ray, spec, int(free > 0))
        free -= 1
        if judge.name in {other.name for other in judges}:
            raise InputError("judges", f"two are called {judge.name!r}", "a name each", "give one a name = ...")
        judges.append(judge)
    return judges
