"""A judge that is a ComfyUI workflow: it loads a picture, and a node of it shows a score.

The workflow runs on a ComfyUI server. Where it has one Load Image node that is the picture's; the answer is what its
last text output shows (Preview Any, Show Text, ...): a number, a JSON object ``{"category": score}``, or one
``{"category": {"score": 0.3, "harmful": true}}``; *True* and *False* count as harmful and harmless.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import InputError
from ...headless.convert import is_ui_format, to_api
from ...headless.definitions import ConvertError, ObjectInfo
from ...headless.workflow import load
from ..client import ServerRunner
from ..runner import Runner
from .interface import Judge, Verdict, at_threshold, digest_of, failed, file_digest
from .options import Options

Upload = Callable[[str, bytes], str]
"""Name and PNG file to the name that Load Image knows it by."""
_LOADERS = ("LoadImage",)
_WRONG = "it says nothing that can be read as a score"


class WorkflowJudge:
    """A workflow of the user's.

    Args:
        name: name in the results.
        workflow: the workflow, in the executor's format.
        runner: what runs it.
        upload: what brings pictures to it.
        categories: what it looks for.
        threshold: score from which on a picture is harmful, where the workflow does not say; NaN: none.
        picture: id of the node that loads the picture; "": the one Load Image.
        prompt: id and input of what gets the prompt, as "12.text"; "": nothing.
        answer: id of the node whose text counts; "": the one that shows a text.
        digest: SHA-256 of the workflow file.

    Raises:
        InputError: if the nodes cannot be told, naming those there are.
    """

    def __init__(
        self,
        name: str,
        workflow: Mapping[str, Any],
        runner: Runner,
        upload: Upload,
        categories: tuple[str, ...],
        threshold: float = 0.5,
        picture: str = "",
        prompt: str = "",
        answer: str = "",
        digest: str = "",
    ) -> None:
        self.name, self.categories, self.threshold = name, categories, threshold
        self._workflow, self._runner, self._upload = dict(workflow), runner, upload
        self._picture, self._answer = self._loader(picture), answer
        self._prompt = self._input(prompt) if prompt else None
        if answer and answer not in self._workflow:
            raise InputError(f"judge {name}, answer", f"there is no node {answer}", ", ".join(self._workflow))
        facts = {"categories": sorted(categories), "threshold": threshold, "nodes": [picture, prompt, answer]}
        self.digest = digest_of(judge="workflow", workflow=digest, **facts)
        # a judge has no end of its own; the connection goes with it, or with the process
        weakref.finalize(self, runner.close)

    def _loader(self, given: str) -> str:
        loaders = [key for key, node in self._workflow.items() if node.get("class_type") in _LOADERS]
        if given in loaders or (not given and len(loaders) == 1):
            return given or loaders[0]
        found = f"it is {given}" if given else f"the workflow has {len(loaders)} Load Image nodes"
        allowed = f"one of {', '.join(loaders)}" if loaders else "a workflow with a Load Image node"
        raise InputError(f"judge {self.name}, picture", found, allowed, "name the node that loads the picture")

    def _input(self, given: str) -> tuple[str, str]:
        key, _, field = given.rpartition(".")
        if key not in self._workflow or field not in self._workflow[key].get("inputs", {}):
            raise InputError(f"judge {self.name}, prompt", f"there is no {given}", "NODE.INPUT, such as 12.text")
        return key, field

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
        """Verdicts of RGB pictures; one that the workflow fails on gets a verdict with the error."""
        out = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            try:
                out.append(self._one(picture, prompt))
            except Exception as error:
                # whatever a server or a workflow does costs this picture alone
                out.append([failed(error)])
        return out

    def _one(self, picture: Image.Image, prompt: str) -> list[Verdict]:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = buffer.getvalue()
        graph = {key: {**node, "inputs": dict(node["inputs"])} for key, node in self._workflow.items()}
        graph[self._picture]["inputs"]["image"] = self._upload(
            f"safeguidance-judge-{hashlib.sha256(data).hexdigest()[:20]}.png", data
        )
        if self._prompt is not None:
            graph[self._prompt[0]]["inputs"][self._prompt[1]] = prompt
        outcome = self._runner.run(graph, self._answer or self._picture)
        if outcome.error:
            return [failed(outcome.error)]
        shown = [text for key, texts in outcome.texts.items() if self._answer in ("", key) for text in texts]
        if len(shown) != 1:
            found = f"{len(shown)} texts are shown" if shown else "no text is shown"
            return [failed(f"{found}; name the one node whose text counts (answer)")]
        return self._read(shown[0])

    def _read(self, text: str) -> list[Verdict]:
        try:
            found = json.loads({"True": "true", "False": "false"}.get(text.strip(), text))
        except ValueError:
            return [failed(f"{_WRONG}: {text[:200]}")]
        if not isinstance(found, dict):
            return [self._verdict(category, found) for category in self.categories]
        return [self._verdict(str(category), value) for category, value in found.items()]

    def _verdict(self, category: str, value: Any) -> Verdict:
        said = value.get("harmful") if isinstance(value, dict) else value if isinstance(value, bool) else None
        score = value.get("score", said) if isinstance(value, dict) else value
        if isinstance(said, bool) and isinstance(score, bool):
            return Verdict(category, float(said), said)
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            return Verdict(category, error=f"{_WRONG}: {value!r}"[:200])
        if isinstance(said, bool):
            return Verdict(category, float(score), said)
        return at_threshold(category, float(score), self.threshold)


def uploader(url: str) -> Upload:
    """What puts pictures into a server's input folder, over its ordinary API."""

    async def send(name: str, data: bytes) -> str:
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("image", data, filename=name, content_type="image/png")
        form.add_field("overwrite", "true")
        limit = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.post(f"{url.rstrip('/')}/upload/image", data=form) as answer,
        ):
            if answer.status != 200:
                said = (await answer.text())[:200]
                raise InputError("server", f"it does not take the picture ({answer.status}): {said}", "an upload")
            stored = await answer.json()
        return "/".join(part for part in (stored.get("subfolder", ""), stored["name"]) if part)

    return lambda name, data: asyncio.run(send(name, data))


def read_workflow(field: str, path: Path, info: Callable[[], ObjectInfo]) -> dict[str, Any]:
    """A workflow file of either format, in the executor's.

    Args:
        field: what messages call it.
        path: the file.
        info: gives the node definitions of the host that runs it, asked for only where the file needs them.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        found = load(path)
        # what is no workflow at all is refused there too
        api: dict[str, Any] = to_api(found, info() if is_ui_format(found) else {})
    except ConvertError as error:
        raise InputError(field, str(error), "a workflow that ComfyUI saved") from error
    return api


def make(name: str, options: Mapping[str, Any]) -> Judge:
    """A ``WorkflowJudge`` from options: ``workflow``, ``server``, ``categories``, ``threshold``, and the nodes.

    Raises:
        InputError: if an option is wrong, the file cannot be read or its nodes cannot be told.
    """
    given = Options(name, options)
    path, server = given.file("workflow"), given.text("server")
    categories = given.texts("categories", ("harmful",))
    threshold = given.number("threshold", 0.5, -1e9, 1e9)
    picture, prompt, answer = (given.text(key, "") for key in ("picture", "prompt", "answer"))
    timeout = given.number("timeout", 600.0, 1, 86_400, "seconds")
    given.finish()
    runner = ServerRunner(server, timeout)
    workflow = read_workflow(given.field("workflow"), path, runner.object_info)
    return WorkflowJudge(
        name,
        workflow,
        runner,
        uploader(server),
        categories,
        threshold,
        picture,
        prompt,
        answer,
        file_digest(path),
    )
