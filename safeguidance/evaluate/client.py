"""A ComfyUI server as a runner, over its ordinary API: /prompt, the websocket for progress, /history and /view."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from ..errors import InputError
from ..headless.definitions import ObjectInfo
from .graph import Api
from .runner import GraphRefused, Outcome, Progress, RunnerLost, RunnerUnusable

Answer = TypeVar("Answer")
_QUIET = 5.0
"""Seconds without a message after which the server is asked whether it still has the workflow."""
_ENDED = ("execution_success", "execution_error", "execution_interrupted")


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise InputError(
            "run.servers",
            "the package aiohttp is missing",
            "an interpreter that has it; ComfyUI's own does",
            "python -m pip install 'safeguidance[evaluate]', or use ComfyUI's Python",
        ) from error
    return aiohttp


class ServerRunner:
    """One server. Its calls come from one thread at a time; ``close`` may come from another.

    Args:
        url: of the server, such as http://127.0.0.1:8188.
        timeout: seconds that one picture may take from when the server begins it.
        patience: seconds that a request may go unanswered.
    """

    def __init__(self, url: str, timeout: float = 600.0, patience: float = 30.0) -> None:
        self.name = self.url = url.rstrip("/")
        self.timeout, self.patience = timeout, patience
        self._aiohttp = _aiohttp()
        self._client = uuid.uuid4().hex
        self._session: Any = None
        self._socket: Any = None
        self._prompt = ""
        self._closed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"client of {url}", daemon=True)
        self._thread.start()

    # ---- what a runner does

    def object_info(self) -> ObjectInfo:
        """Node definitions of the server.

        Raises:
            RunnerUnusable: if it is no ComfyUI.
        """
        found: ObjectInfo = self._wait(self._json("GET", "/object_info"))
        if not isinstance(found, dict) or "CLIPTextEncode" not in found:
            raise RunnerUnusable(f"{self.url} is no ComfyUI: /object_info names no nodes of it")
        return found

    def facts(self) -> dict[str, Any]:
        """Version and device of the server.

        Raises:
            RunnerLost: if it does not answer.
        """
        stats = self._wait(self._json("GET", "/system_stats"))
        system = stats.get("system", {})
        return {
            "server": self.url,
            "comfyui": system.get("comfyui_version", "unknown"),
            "python": str(system.get("python_version", "")).split(" ")[0],
            "torch": system.get("pytorch_version", ""),
            "devices": [device.get("name", "") for device in stats.get("devices", [])],
        }

    def run(self, graph: Api, output: str, progress: Progress | None = None) -> Outcome:
        """Run a workflow on the server.

        Raises:
            RunnerLost: if it does not answer any more, or does not finish in time.
            GraphRefused: if it does not take the workflow.
        """
        return self._wait(self._run(graph, output, progress))

    def close(self) -> None:
        """Take what we have queued out of the server's queue, and end the connection."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    # ---- the connection

    def _wait(self, answer: Coroutine[Any, Any, Answer]) -> Answer:
        if self._closed.is_set():
            answer.close()
            raise RunnerLost(f"{self.url} was let go of")
        return asyncio.run_coroutine_threadsafe(self._guarded(answer), self._loop).result()

    async def _guarded(self, answer: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await answer
        except (self._aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:  # noqa: UP041
            await self._drop()
            # aiohttp names its way of checking certificates in every such message, also where there is none
            text = str(error).replace(" ssl:default", "") or type(error).__name__
            raise RunnerLost(f"{self.url} does not answer: {text}") from error
        except RunnerLost:
            await self._drop()
            raise

    async def _leave(self) -> None:
        if self._prompt and self._session is not None:
            with contextlib.suppress(Exception):
                await self._cancel(self._prompt)
        await self._drop()

    async def _drop(self) -> None:
        session, self._session, self._socket = self._session, None, None
        if session is not None:
            with contextlib.suppress(Exception):
                await session.close()

    async def _cancel(self, prompt: str) -> None:
        """Take a workflow out of the queue, or stop it where it runs; those of others go on."""
        await self._json("POST", "/queue", {"delete": [prompt]})
        running = (await self._json("GET", "/queue")).get("queue_running", [])
        if any(prompt in entry for entry in running):
            await self._json("POST", "/interrupt", {"prompt_id": prompt})

    def _open(self) -> Any:
        if self._session is None:
            limit = self._aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self.patience)
            self._session = self._aiohttp.ClientSession(timeout=limit)
        return self._session

    async def _request(self, method: str, path: str, body: Any = None, query: Any = None) -> tuple[int, bytes]:
        async with self._open().request(method, self.url + path, json=body, params=query) as answer:
            return answer.status, await answer.read()

    async def _json(self, method: str, path: str, body: Any = None) -> Any:
        status, found = await self._request(method, path, body)
        if status != 200:
            raise RunnerLost(f"{self.url}{path} answered {status}: {found[:200].decode(errors='replace')}")
        try:
            return json.loads(found) if found.strip() else {}
        except ValueError as error:
            raise RunnerLost(f"{self.url}{path} answered no JSON") from error

    async def _listen(self) -> Any:
        """The websocket; None where the server gives none, then it is asked from time to time."""
        if self._socket is None or self._socket.closed:
            with contextlib.suppress(self._aiohttp.ClientError, OSError):
                address = f"{self.url}/ws?clientId={self._client}"
                self._socket = await self._open().ws_connect(address, max_msg_size=0, heartbeat=None)
        return self._socket

    # ---- one workflow

    async def _run(self, graph: Api, output: str, progress: Progress | None) -> Outcome:
        await self._listen()
        status, body = await self._request("POST", "/prompt", {"prompt": graph, "client_id": self._client})
        if status == 400:
            raise GraphRefused(_refusal(body, graph))
        if status != 200:
            raise RunnerLost(f"{self.url}/prompt answered {status}: {body[:200].decode(errors='replace')}")
        answer = json.loads(body)
        if answer.get("node_errors"):
            # part of the outputs would run; what is missing could be the guard's record
            await self._cancel(str(answer["prompt_id"]))
            raise GraphRefused(_refusal(body, graph))
        self._prompt = str(answer["prompt_id"])
        try:
            entry = await self._follow(self._prompt, progress)
            return await self._outcome(entry, output)
        finally:
            self._prompt = ""

    async def _follow(self, prompt: str, progress: Progress | None) -> dict[str, Any]:
        """Wait until a workflow has ended; gives its entry in the history."""
        deadline = float("inf")
        while time.monotonic() < deadline:
            heard = await self._next(prompt, progress)
            if heard == "ours" and deadline == float("inf"):
                deadline = time.monotonic() + self.timeout
            if heard in ("ended", "nothing"):
                # the entry is written a moment after the last message
                entry = await self._entry(prompt, 40 if heard == "ended" else 1)
                if entry:
                    return entry
                queue = await self._json("GET", "/queue")
                running, waiting = (
                    any(prompt in entry for entry in queue.get(part, [])) for part in ("queue_running", "queue_pending")
                )
                if running and deadline == float("inf"):
                    deadline = time.monotonic() + self.timeout
                if not running and not waiting:
                    # it may have ended between the two questions
                    if entry := await self._entry(prompt, 10):
                        return entry
                    raise RunnerLost(f"{self.url} has lost the workflow; it was restarted, or its queue was cleared")
        await self._cancel(prompt)
        raise RunnerLost(f"{self.url} did not finish a picture in {self.timeout:g} s")

    async def _entry(self, prompt: str, tries: int) -> dict[str, Any]:
        """The entry of a workflow in the history, taken out of it; empty where there is none."""
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(0.05)
            entry: dict[str, Any] = (await self._json("GET", f"/history/{prompt}")).get(prompt, {})
            if entry:
                await self._json("POST", "/history", {"delete": [prompt]})
                return entry
        return {}

    async def _next(self, prompt: str, progress: Progress | None) -> str:
        """Read a message: "ours", "ended" (ours too), "other", or "nothing" where none comes for a while."""
        socket = await self._listen()
        if socket is None:
            await asyncio.sleep(0.5)
            return "nothing"
        try:
            message = await asyncio.wait_for(socket.receive(), _QUIET)
        except asyncio.TimeoutError:  # noqa: UP041  (another class before Python 3.11)
            return "nothing"
        kinds = self._aiohttp.WSMsgType
        if message.type in (kinds.CLOSE, kinds.CLOSING, kinds.CLOSED, kinds.ERROR):
            self._socket = None
            await asyncio.sleep(0.2)
            return "nothing"
        # the others are previews of the picture
        content = json.loads(message.data) if message.type == kinds.TEXT else {}
        kind, data = content.get("type"), content.get("data") or {}
        if data.get("prompt_id") != prompt:
            return "other"
        if kind == "progress" and progress is not None:
            progress(int(data.get("value", 0)), int(data.get("max", 0)))
        return "ended" if kind in _ENDED else "ours"

    async def _outcome(self, entry: Mapping[str, Any], output: str) -> Outcome:
        messages = dict(entry.get("status", {}).get("messages", []))
        for kind in ("execution_error", "execution_interrupted"):
            if kind in messages:
                return Outcome(error=execution_error(kind, messages[kind]))
        outputs = entry.get("outputs", {})
        pictures = [await self._view(item) for item in outputs.get(output, {}).get("images", [])]
        texts = {key: [str(t) for t in shown.get("text", [])] for key, shown in outputs.items() if shown.get("text")}
        known = output in messages.get("execution_cached", {}).get("nodes", [])
        ends = [messages.get(kind, {}).get("timestamp") for kind in ("execution_start", "execution_success")]
        seconds = None if known or None in ends else (ends[1] - ends[0]) / 1000
        return Outcome(tuple(pictures), texts, seconds)

    async def _view(self, item: Mapping[str, Any]) -> bytes:
        query = {name: str(item.get(name, "")) for name in ("filename", "subfolder", "type")}
        status, found = await self._request("GET", "/view", query=query)
        if status != 200:
            raise RunnerLost(f"{self.url}/view answered {status} for the picture it has made")
        return found


def execution_error(kind: str, data: Mapping[str, Any]) -> str:
    """What went wrong while a workflow ran, in a line."""
    if kind == "execution_interrupted":
        return "it was interrupted on the server"
    text = " ".join(str(data.get("exception_message", "")).split())
    return f"node {data.get('node_id')} ({data.get('node_type')}): {data.get('exception_type')}: {text}"


def _refusal(body: bytes, graph: Api) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return body[:300].decode(errors="replace")
    found = []
    for key, node in (answer.get("node_errors") or {}).items():
        kind = node.get("class_type") or graph.get(key, {}).get("class_type", "")
        for error in node.get("errors", []):
            found.append(f"node {key} ({kind}): {error.get('message', '')}: {error.get('details', '')}")
    error = answer.get("error") or {}
    if not found and isinstance(error, Mapping):
        found = [": ".join(filter(None, (str(error.get("message", "")), str(error.get("details", "")))))]
    return "; ".join(found) or str(error)
