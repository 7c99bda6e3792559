"""Running prompts through the host's real executor in this process.

`run_prompt` is one prompt on a fresh executor. A `HostSession` keeps its executor, hence its cache, over
several runs, as the queue of a running ComfyUI does.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import check_choice
from . import boot as booting

CLIENT = "safeguidance-harness"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class NodeError:
    """One thing that is wrong with a node.

    Attributes:
        node_id: Id in the API graph; empty when the graph as a whole is meant.
        class_type: Node type, where known.
        title: Title of the node, where the graph has one.
        field: Name of the input that is meant, where one is.
        message: What the host says.
        kind: The host's name for the error, or the exception type.
        traceback: Lines of the traceback of an execution error.
    """

    node_id: str
    class_type: str
    title: str
    field: str
    message: str
    kind: str
    traceback: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the error as one line: node id, type, title, field, message."""
        where = f"node {self.node_id} ({self.class_type or 'unknown type'})" if self.node_id else "workflow"
        title = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        name = f", field {self.field}" if self.field else ""
        return f"{where}{title}{name}: {' '.join(self.message.split())} [{self.kind}]"


@dataclass
class RunResult:
    """What one prompt did.

    Attributes:
        ok: True when everything ran.
        stage: "validation" when the host refused the graph, "execution" when it started.
        errors: What went wrong.
        outputs: Per node id, its raw outputs (one list per output slot), as far as the executor's cache holds
            them.
        ui: Per node id, what it shows to the user: texts, names of images.
        executed: Node ids that ran, in order (nodes made by node expansion have ids of their own).
        cached: Node ids whose outputs came from the cache.
        messages: Every message the host sent, as (event, data).
        images: Files that were written, per node id.
        seconds: Wall time of the run.
        node_seconds: Wall time per executed node.
    """

    ok: bool
    stage: str
    errors: list[NodeError] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    ui: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list, repr=False)
    images: dict[str, list[Path]] = field(default_factory=dict)
    seconds: float = 0.0
    node_seconds: dict[str, float] = field(default_factory=dict)

    def value(self, node_id: str, slot: int = 0) -> Any:
        """Return the first item of one output of a node.

        Raises:
            KeyError: The node has no outputs in the cache.
        """
        if node_id not in self.outputs:
            raise KeyError(f"node {node_id} has no outputs; there are outputs of {sorted(self.outputs)}")
        return self.outputs[node_id][slot][0]


def clean_graph(api_prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return an API graph without the keys that start with an underscore (notes, groups)."""
    return {str(key): node for key, node in api_prompt.items() if not str(key).startswith("_")}


def _title(graph: Mapping[str, Any], node_id: str) -> str:
    return str((graph.get(node_id) or {}).get("_meta", {}).get("title", ""))


def _class(graph: Mapping[str, Any], node_id: str) -> str:
    return str((graph.get(node_id) or {}).get("class_type", ""))


def _validation_errors(graph: Mapping[str, Any], error: Any, node_errors: Mapping[str, Any]) -> list[NodeError]:
    found = []
    for node_id, entry in node_errors.items():
        for item in entry.get("errors", []):
            details = str(item.get("details", ""))
            message = str(item.get("message", ""))
            name = str((item.get("extra_info") or {}).get("input_name", ""))
            # The host's details often repeat only the field's name, which the line has already.
            text = message if details in ("", name) else f"{message}: {details}"
            kind = str(item.get("type", "invalid"))
            found.append(NodeError(str(node_id), _class(graph, node_id), _title(graph, node_id), name, text, kind))
    if not found and error:
        extra = error.get("extra_info") or {}
        node_id = str(extra.get("node_id") or "")
        text = ": ".join(part for part in (str(error.get("message", "")), str(error.get("details", ""))) if part)
        title = _title(graph, node_id)
        found.append(NodeError(node_id, _class(graph, node_id), title, "", text, str(error.get("type", "invalid"))))
    return found


def _dangling_links(graph: Mapping[str, Any]) -> list[NodeError]:
    """Find links to nodes that are not there; the host only reports a bare KeyError, at another node."""
    found = []
    for node_id, node in graph.items():
        for name, value in (node.get("inputs") or {}).items():
            is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            if is_link and isinstance(value[1], int) and value[0] not in graph:
                text = f"linked to node {value[0]}, which is not in the workflow"
                found.append(
                    NodeError(node_id, _class(graph, node_id), _title(graph, node_id), name, text, "missing_node")
                )
    return found


class HostSession:
    """One executor of the booted host, kept over several runs."""

    def __init__(self, cache: str = "classic") -> None:
        """Make the executor.

        Args:
            cache: "classic" keeps the outputs of the last prompt, "lru" those of several, "none" keeps
                nothing.

        Raises:
            BootError: No host is booted in this process.
            InputError: Unknown cache.
        """
        self.host = booting.current()
        self._executor = _make_executor(self.host.server, cache)

    def interrupt(self) -> None:
        """Ask the running prompt to stop, as the interrupt button does; call it from `on_progress`."""
        booting.host_nodes().interrupt_processing()

    def run(self, api_prompt: Mapping[str, Any], on_progress: Progress | None = None) -> RunResult:
        """Validate and run one prompt.

        Args:
            api_prompt: Graph in API format; keys that start with an underscore are ignored.
            on_progress: Called with (node id, step, steps) as nodes report; step 0 means the node has
                started.

        Returns:
            The result. A graph that is refused, also only in part, is not run: `ok` is False, `stage`
            "validation".
        """
        execution = booting.host_module("execution")
        graph = clean_graph(api_prompt)
        prompt_id = str(uuid.uuid4())
        started = time.perf_counter()
        parameters = inspect.signature(execution.validate_prompt).parameters
        arguments = [prompt_id, graph, None][: len(parameters)] if len(parameters) > 1 else [graph]
        broken = _dangling_links(graph)
        if broken:
            return RunResult(False, "validation", broken)
        ok, error, targets, node_errors = asyncio.run(execution.validate_prompt(*arguments))
        if not ok or node_errors:
            result = RunResult(False, "validation", _validation_errors(graph, error, node_errors))
            result.seconds = time.perf_counter() - started
            return result
        return self._execute(graph, prompt_id, targets, on_progress, started)

    def _execute(
        self,
        graph: dict[str, Any],
        prompt_id: str,
        targets: Any,
        on_progress: Progress | None,
        started: float,
    ) -> RunResult:
        recorder = _Recorder(on_progress)
        with recorder.attached(self.host.server):
            self.host.server.last_prompt_id = prompt_id
            self._executor.execute(graph, prompt_id, {"client_id": CLIENT}, list(targets))
        recorder.finish()
        messages = list(recorder.messages)
        known = {event for event, _ in messages}
        messages += [(event, data) for event, data in self._executor.status_messages if event not in known]
        result = RunResult(False, "execution", messages=messages)
        result.errors = [_execution_error(graph, event, data) for event, data in messages if event in _FAILURES]
        # The executor's own `success` flag keeps its last value when a run breaks off before the first node.
        result.ok = not result.errors and any(event == "execution_success" for event, _ in messages)
        result.ui = {str(key): value for key, value in self._executor.history_result.get("outputs", {}).items()}
        result.executed = recorder.executed
        result.node_seconds = recorder.seconds
        result.cached = [str(n) for event, data in messages if event == "execution_cached" for n in data["nodes"]]
        result.outputs = self._cached_outputs(graph)
        result.images = _written_files(result.ui)
        result.seconds = time.perf_counter() - started
        return result

    def _cached_outputs(self, graph: Mapping[str, Any]) -> dict[str, list[Any]]:
        async def collect() -> dict[str, list[Any]]:
            found = {}
            for node_id in graph:
                entry = self._executor.caches.outputs.get(node_id)
                if inspect.isawaitable(entry):
                    entry = await entry
                outputs = getattr(entry, "outputs", entry)
                if outputs is not None:
                    found[node_id] = list(outputs)
            return found

        return asyncio.run(collect())


def _make_executor(server: Any, cache: str) -> Any:
    execution = booting.host_module("execution")
    names = {"classic": "CLASSIC", "lru": "LRU", "none": "NONE"}
    check_choice("cache", cache, tuple(names))
    kwargs: dict[str, Any] = {"cache_type": getattr(execution.CacheType, names[cache])}
    parameters = inspect.signature(execution.PromptExecutor.__init__).parameters
    if "cache_args" in parameters:
        kwargs["cache_args"] = {"lru": 100 if cache == "lru" else 0, "ram": 0.0, "ram_inactive": 0.0}
    return execution.PromptExecutor(server, **kwargs)


_FAILURES = ("execution_error", "execution_interrupted")


def _execution_error(graph: Mapping[str, Any], event: str, data: Mapping[str, Any]) -> NodeError:
    node_id = str(data.get("node_id") or "")
    kind = str(data.get("exception_type") or "interrupted")
    text = str(data.get("exception_message") or "interrupted")
    lines = tuple(str(line) for line in data.get("traceback") or ())
    class_type = str(data.get("node_type") or _class(graph, node_id))
    return NodeError(node_id, class_type, _title(graph, node_id), "", text, kind, lines)


def _written_files(ui: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Path]]:
    folder_paths = booting.host_module("folder_paths")
    found: dict[str, list[Path]] = {}
    for node_id, shown in ui.items():
        for items in shown.values():
            for item in items if isinstance(items, (list, tuple)) else ():
                if isinstance(item, dict) and item.get("filename") and item.get("type") in ("output", "temp"):
                    folder = Path(folder_paths.get_directory_by_type(item["type"]))
                    found.setdefault(node_id, []).append(folder / item.get("subfolder", "") / item["filename"])
    return found


class _Recorder:
    """Stands between the executor and the server's message queue, which is not read here."""

    def __init__(self, on_progress: Progress | None) -> None:
        self.on_progress = on_progress
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.executed: list[str] = []
        self.seconds: dict[str, float] = {}
        self._node = ""
        self._since = 0.0

    def send(self, event: Any, data: Any, sid: Any = None) -> None:
        if not isinstance(data, dict):
            return  # previews
        self.messages.append((str(event), data))
        if event == "executing" and data.get("node"):
            self.finish()
            self._node, self._since = str(data["node"]), time.perf_counter()
            self.executed.append(self._node)
            if self.on_progress:
                self.on_progress(self._node, 0, 0)

    def finish(self) -> None:
        if self._node:
            spent = time.perf_counter() - self._since
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + spent
        self._node = ""

    def hook(self, value: int, total: int, preview: Any = None, **_: Any) -> None:
        self.messages.append(("progress", {"node": self._node, "value": int(value), "max": int(total)}))
        if self.on_progress:
            self.on_progress(self._node, int(value), int(total))
        booting.host_module("comfy.model_management").throw_exception_if_processing_interrupted()

    def attached(self, server: Any) -> _Attached:
        return _Attached(self, server)


class _Attached:
    def __init__(self, recorder: _Recorder, server: Any) -> None:
        self.recorder, self.server = recorder, server

    def __enter__(self) -> None:
        self.previous = booting.host_module("comfy.utils").PROGRESS_BAR_HOOK
        self.server.send_sync = self.recorder.send
        booting.host_module("comfy.utils").set_progress_bar_global_hook(self.recorder.hook)

    def __exit__(self, *_: Any) -> None:
        del self.server.send_sync
        booting.host_module("comfy.utils").set_progress_bar_global_hook(self.previous)


def run_prompt(
    api_prompt: Mapping[str, Any],
    *,
    session: HostSession | None = None,
    on_progress: Progress | None = None,
) -> RunResult:
    """Run one prompt on the booted host.

    Args:
        api_prompt: Graph in API format.
        session: Executor to use; a fresh one by default.
        on_progress: Called with (node id, step, steps).

    Raises:
        BootError: No host is booted in this process.
    """
    return (session or HostSession()).run(api_prompt, on_progress)
