"""An ordinary ComfyUI server on loopback, and a small client for it.

The client uses aiohttp, which every host has, so it runs under the host's interpreter. Use it as a context
manager: the server is stopped in every case.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safeguidance.headless.boot import PACK_FOLDER, PackImportError, host_arguments, prepare_base
from safeguidance.headless.execute import clean_graph
from safeguidance.headless.hosts import PACK_ROOT, Host

Answer = TypeVar("Answer")


class ServerError(Exception):
    """The server did not start, refused a prompt in an unexpected way, or did not finish in time."""


@dataclass
class Served:
    """What the server answered to one prompt.

    Attributes:
        ok: True when it ran to the end.
        prompt_id: The server's id; empty when it refused the prompt.
        rejected: The body of the refusal (error, node_errors), empty when it was taken.
        messages: The websocket's messages about this prompt, as (type, data).
        history: The prompt's entry in /history.
    """

    ok: bool
    prompt_id: str = ""
    rejected: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def images(self) -> list[dict[str, Any]]:
        """Return what /view needs for every image the prompt made."""
        shown = self.history.get("outputs", {}).values()
        return [image for outputs in shown for image in outputs.get("images", [])]


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ComfyServer:
    """A running server of one host, with its own base directory."""

    def __init__(
        self,
        host: Host,
        *,
        pack: Path | None = PACK_ROOT,
        base_dir: Path | None = None,
        device: str = "cpu",
        frontend: bool = False,
        arguments: tuple[str, ...] = (),
        start_timeout: float = 180.0,
        folder: str = PACK_FOLDER,
    ) -> None:
        """Describe the server; it starts when the context is entered.

        Args:
            host: The checkout and its interpreter.
            pack: Folder of the pack to load, None for none.
            base_dir: Where the server keeps its files; a temporary folder by default.
            device: "cpu" or "gpu".
            frontend: Serve the host's real frontend package instead of an empty page.
            arguments: More arguments for main.py.
            start_timeout: Seconds to wait until it answers.
            folder: Name of the pack's folder, which the editor shows on its nodes.
        """
        self.folder = folder
        self.host, self.pack, self.device = host, pack, device
        self.frontend, self.arguments, self.start_timeout = frontend, arguments, start_timeout
        self._own = (
            None if base_dir else tempfile.TemporaryDirectory(prefix="safeguidance-server-", ignore_cleanup_errors=True)
        )
        self.base_dir = Path(base_dir or self._own.name).resolve()  # type: ignore[union-attr]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = self.base_dir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        """Start the server and wait until it answers.

        Raises:
            ServerError: It stopped, or did not answer in time; the end of its log is in the text.
            PackImportError: The host did not load the pack.
        """
        try:
            self._start()
            self._wait()
            self._check_pack()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def _start(self) -> None:
        prepare_base(self.base_dir, self.pack)
        if self.pack is not None and self.folder != PACK_FOLDER:
            (self.base_dir / "custom_nodes" / PACK_FOLDER).rename(self.base_dir / "custom_nodes" / self.folder)
        (self.base_dir / "web" / "index.html").write_text(
            "<!doctype html><title>no frontend</title>\n", encoding="utf-8"
        )
        command = [
            str(self.host.python),
            str(self.host.path / "main.py"),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        told = host_arguments(self.base_dir, self.pack, self.device)
        command += [self.folder if word == PACK_FOLDER else word for word in told]
        if self.frontend:
            cut = command.index("--front-end-root")
            del command[cut : cut + 2]
        # The pack's own folder on PYTHONPATH would offer its package `nodes` where the host means its
        # nodes.py.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        options: dict[str, Any] = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.base_dir,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                **options,
            )

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the server stopped with exit code {self._process.returncode}:\n{self.log()[-3000:]}"
                )
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"{self.url}/system_stats", timeout=5
                ):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise ServerError(f"the server did not answer within {self.start_timeout:.0f} s:\n{self.log()[-3000:]}")

    def _check_pack(self) -> None:
        if self.pack is None:
            return
        about = [line for line in self.log().splitlines() if self.folder in line]
        modules = {entry.get("python_module") for entry in self.object_info().values()}
        if f"custom_nodes.{self.folder}" not in modules or any("IMPORT FAILED" in line for line in about):
            reason = "\n".join(about) or self.log()[-2000:]
            raise PackImportError(f"IMPORT FAILED: ComfyUI did not load the pack at {self.pack}.\n{reason}")

    def log(self) -> str:
        """Return what the server has printed so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def stop(self) -> None:
        """Stop the server and remove its own temporary folder; safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=15)
        if self._own is not None:
            self._own.cleanup()

    @property
    def running(self) -> bool:
        """Say whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    # -- client
    # ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON answer of a GET request, or the bytes where it is no JSON.

        Raises:
            ServerError: The answer is no 200.
        """
        return _wait_for(self._get(path, query))

    def object_info(self) -> dict[str, Any]:
        """Return /object_info."""
        return dict(self.get("/object_info"))

    def view(self, image: Mapping[str, Any]) -> bytes:
        """Return the bytes of an image named in a history entry."""
        names = ("filename", "subfolder", "type")
        return bytes(self.get("/view", **{name: image.get(name, "") for name in names}))

    def run(self, api_prompt: Mapping[str, Any], timeout: float = 300.0) -> Served:
        """Queue one prompt and follow it over the websocket until it ends.

        Args:
            api_prompt: Graph in API format; keys that start with an underscore are ignored.
            timeout: Seconds to wait.

        Raises:
            ServerError: It did not end in time, or the connection broke.
        """
        return _wait_for(self._run(clean_graph(api_prompt), timeout))

    async def _get(self, path: str, query: Mapping[str, Any]) -> Any:
        import aiohttp

        async with aiohttp.ClientSession() as session, session.get(self.url + path, params=query) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise ServerError(f"GET {path} answered {answer.status}: {body[:300]!r}")
            return json.loads(body) if "json" in answer.content_type else body

    async def _run(self, graph: dict[str, Any], timeout: float) -> Served:
        import aiohttp

        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}") as socket_,
        ):
            async with session.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": client}) as answer:
                body = await answer.json()
            if answer.status != 200 or body.get("node_errors"):
                return Served(False, rejected=body)
            served = Served(False, str(body["prompt_id"]))
            try:
                await asyncio.wait_for(_follow(socket_, served), timeout)
            except asyncio.TimeoutError as error:  # noqa: UP041  (another class before Python 3.11)
                raise ServerError(f"the prompt did not end within {timeout:.0f} s:\n{self.log()[-2000:]}") from error
            entry: dict[str, Any] = {}
            for _ in range(100):
                # The history entry is written a moment after the last message.
                async with session.get(f"{self.url}/history/{served.prompt_id}") as answer:
                    entry = (await answer.json()).get(served.prompt_id, {})
                if entry:
                    break
                await asyncio.sleep(0.05)
            served.history = entry
            served.ok = served.ok and entry.get("status", {}).get("status_str") == "success"
            return served


async def _follow(socket_: Any, served: Served) -> None:
    async for message in socket_:
        if not isinstance(message.data, str):
            continue  # preview images
        content = json.loads(message.data)
        kind, data = str(content.get("type")), content.get("data") or {}
        if data.get("prompt_id") not in (None, served.prompt_id):
            continue
        served.messages.append((kind, data))
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            served.ok = kind == "execution_success"
            return
    raise ServerError("the websocket closed before the prompt ended")


def _wait_for(answer: Coroutine[Any, Any, Answer]) -> Answer:
    return asyncio.run(answer)
