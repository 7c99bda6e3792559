"""A ComfyUI checkout as a runner: the host in a process of its own, without a server and without a port."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from ..headless.definitions import ObjectInfo
from ..headless.hosts import PACK_ROOT, Host
from ..headless.launch import child_environment
from .graph import Api
from .headless_worker import MARK
from .runner import GraphRefused, Outcome, Progress, RunnerLost, RunnerUnusable

_LINES = 20
"""Last lines of the host that are kept, for messages."""


class HeadlessRunner:
    """One host in a process of its own; started again where it has ended.

    Args:
        host: the checkout and its interpreter.
        number: of this process, where there are several.
        options: as ``headless.worker.start_host`` takes them: pack, device, host_models, input.
        timeout: seconds that one picture may take.
        start_timeout: seconds that the host may take to start.
    """

    def __init__(
        self,
        host: Host,
        number: int = 1,
        options: dict[str, Any] | None = None,
        timeout: float = 600.0,
        start_timeout: float = 300.0,
    ) -> None:
        self.host, self.name = host, f"{host.label} #{number}"
        self.timeout, self.start_timeout = timeout, start_timeout
        self._spec = {"command": "evaluate", "pack": str(PACK_ROOT), "host_models": True, **(options or {})}
        self._spec["host"] = str(host.path)
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._said: list[str] = []
        self._facts: dict[str, Any] = {}
        self._closed = False

    def object_info(self) -> ObjectInfo:
        """Node definitions of the host.

        Raises:
            RunnerLost: if the process ended.
            RunnerUnusable: if the host does not start.
        """
        found: ObjectInfo = self._ask({"do": "object_info"}, None, self.start_timeout)["info"]
        return found

    def facts(self) -> dict[str, Any]:
        """Version and device of the host."""
        return dict(self._facts)

    def file_digests(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of model files that the host finds under these names.

        Raises:
            RunnerLost: if the process ended.
        """
        found: dict[str, str] = self._ask({"do": "digests", "names": list(names)}, None, self.start_timeout)["digests"]
        return found

    def run(self, graph: Api, output: str, progress: Progress | None = None) -> Outcome:
        """Run a workflow in the host.

        Raises:
            RunnerLost: if the process ended, or did not finish in time.
            GraphRefused: if the host does not take the workflow.
        """
        found = self._ask({"do": "run", "graph": graph, "output": output}, progress, self.timeout)
        if "refused" in found:
            raise GraphRefused(found["refused"])
        pictures = tuple(base64.b64decode(text) for text in found["pictures"])
        return Outcome(pictures, found["texts"], found["seconds"], found["error"])

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()

    # ---- the process

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(OSError):
            if child.stdin:
                child.stdin.close()
        try:
            # a host that waits for work ends by itself, and takes its temporary folder with it
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _start(self) -> None:
        if self._closed:
            raise RunnerLost(f"{self.name} was let go of")
        command = [str(self.host.python), "-m", "safeguidance.evaluate.headless_worker", json.dumps(self._spec)]
        self._answers, self._said = queue.Queue(), []
        self._child = subprocess.Popen(
            command,
            cwd=PACK_ROOT,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(target=self._read, args=(self._child, self._answers, self._said), daemon=True).start()
        first = self._answer(self.start_timeout)
        if first is None:
            said = "\n".join(self._said) or "it gave no reason"
            self._end()
            raise RunnerUnusable(f"{self.name} does not start: {said}")
        self._facts = first["facts"]

    @staticmethod
    def _read(child: subprocess.Popen[str], answers: queue.Queue[dict[str, Any] | None], said: list[str]) -> None:
        for line in child.stdout or ():
            if line.startswith(MARK):
                answers.put(json.loads(line.removeprefix(MARK)))
            elif line.strip():
                said.append(line.rstrip())
                del said[:-_LINES]
        answers.put(None)

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def _ask(self, order: dict[str, Any], progress: Progress | None, seconds: float) -> dict[str, Any]:
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
        except (OSError, ValueError) as error:
            self._end()
            raise RunnerLost(f"{self.name} has ended: {self._last()}") from error
        while True:
            found = self._answer(seconds)
            if found is None:
                ended = self._has_ended(child)
                self._end() if ended else self._kill()
                why = f"has ended: {self._last()}" if ended else f"did not finish in {seconds:g} s"
                raise RunnerLost(f"{self.name} {why}")
            if "progress" not in found:
                return found
            if progress is not None:
                progress(*found["progress"])

    @staticmethod
    def _has_ended(child: subprocess.Popen[str]) -> bool:
        """Whether the process ended; its output ends a moment before that can be seen."""
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._end()

    def _last(self) -> str:
        return self._said[-1] if self._said else "it gave no reason"
