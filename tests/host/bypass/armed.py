"""An armed server for the bypass suite: its policy, its spy, and a client that asks as several users."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import numpy
import torch

from safeguidance.headless.boot import PACK_FOLDER
from safeguidance.headless.hosts import PACK_ROOT, make_host
from tools.server import ComfyServer, ServerError

PACKS = Path(__file__).parent / "packs"
ROOT = Path(os.environ.get("SAFEGUIDANCE_PACK", str(PACK_ROOT)))
SKULL, CUP, BOMB = "a skull on a meadow", "a cup of coffee on a meadow", "a bomb in the snow"
POLICY = """
version = 1
name = "bypass"
strictest = "youth"
previews = "off"
loaded = "refuse"

[categories]
"*" = { action = "guard" }

[[guards]]
method = "text-redirector"

[levels.youth]

[levels.adult]
[levels.adult.categories]
"*" = { threshold = 1.0, action = "guard" }

[levels.pupil]
refuse_prompts = true
message = "This picture is not for our class."

[levels.notice]
[levels.notice.categories]
"*" = { action = "replace" }

[levels.hgr]
[[levels.hgr.guards]]
method = "hgr"

[levels.concepts]
[[levels.concepts.guards]]
method = "concepts"

[levels.spguard]
[[levels.spguard.guards]]
method = "sp-guard"

[levels.spstrict]
[levels.spstrict.categories]
"*" = { threshold = 0.01, action = "refuse" }
[[levels.spstrict.guards]]
method = "sp-guard"

[levels.safree]
[[levels.safree.guards]]
method = "safree"

[levels.none]
[[levels.none.guards]]
method = "hgr"
families = ["SDXL"]

[levels.teacher]
supervisor = true

[identity]
header = "X-Remote-User"
trusted_addresses = ["127.0.0.1"]
[identity.users]
ann = "adult"
bob = "youth"
pia = "pupil"
nora = "notice"
hugo = "hgr"
cora = "concepts"
sven = "spguard"
sia = "spstrict"
sara = "safree"
nils = "none"
tom = "teacher"

[nodes]
add = ["package:bypass_pack"]
remove = ["BypassForbidden"]

[models]
allow = ["allowed.safetensors"]

[audit]
path = "audit.jsonl"
text = true

[evidence]
"""


@dataclass
class Done:
    """What became of a request to draw.

    Attributes:
        status: ``refused`` before it was queued, ``error`` while it ran, ``ok``.
        message: what the user reads.
        images: what /view needs for every picture that it gave.
        prompt_id: of the queue, "" where it was refused.
        node: id of the node that turned red, "" for none.
        kind: of the error.
    """

    status: str
    message: str = ""
    images: list[dict[str, Any]] = field(default_factory=list)
    prompt_id: str = ""
    node: str = ""
    kind: str = ""


class Armed(ComfyServer):
    """A server that a policy arms, with a spy in it."""

    def __init__(
        self,
        host: Any,
        folder: Path,
        policy: str = POLICY,
        packs: Sequence[str] = ("bypass_pack", "bypass_spy"),
        python: Path | None = None,
        **settings: Any,
    ) -> None:
        self.policy_path, self.spied = folder / "policy.toml", folder / "spied"
        self.policy_path.write_text(policy, encoding="utf-8")
        self.spied.mkdir()
        base = folder / "base"
        (base / "custom_nodes").mkdir(parents=True)
        for name in packs:
            shutil.copytree(PACKS / name, base / "custom_nodes" / name, ignore=shutil.ignore_patterns("__pycache__"))
        arguments = ("--whitelist-custom-nodes", PACK_FOLDER, *packs, *settings.pop("arguments", ()))
        made = make_host(host.path)
        made = made if python is None else replace(made, python=python)
        super().__init__(made, pack=ROOT, base_dir=base, arguments=arguments, **settings)
        self.audit_path, self.ready_path = folder / "audit.jsonl", folder / "ready.json"

    def _start(self) -> None:
        # the server reads its environment once
        named = {"SAFEGUIDANCE_POLICY": str(self.policy_path), "SAFEGUIDANCE_POLICY_READY": str(self.ready_path)}
        named |= {"BYPASS_SPY": str(self.spied), "OMP_NUM_THREADS": "1"}
        with mock.patch.dict(os.environ, named):
            super()._start()

    # ---- asking ----

    def ask(
        self, method: str, path: str, body: Any = None, user: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer.

        Args:
            method: of HTTP.
            path: with its query.
            body: sent as JSON, or as it is where it is bytes.
            user: named in the proxy's header; "" for nobody.
            headers: further ones.
        """
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=raw, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in {**({"X-Remote-User": user} if user else {}), **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, user: str = "") -> Any:
        """The JSON of a GET request that is answered."""
        status, body = self.ask("GET", path, user=user)
        assert status == 200, (status, body[:300])
        return json.loads(body)

    def queue(self, graph: Mapping[str, Any], user: str = "", path: str = "/prompt", **more: Any) -> Done:
        """Queue a graph; does not wait."""
        status, body = self.ask("POST", path, {"prompt": graph, "client_id": f"client-{user}", **more}, user)
        found = json.loads(body)
        if status != 200 or found.get("node_errors"):
            error, nodes = found.get("error", {}), found.get("node_errors", {})
            return Done("refused", error.get("message", ""), node=next(iter(nodes), ""), kind=error.get("type", ""))
        return Done("queued", prompt_id=found["prompt_id"])

    def wait(self, done: Done, user: str = "", seconds: float = 120) -> Done:
        """What became of a queued graph."""
        deadline = time.monotonic() + seconds
        while done.status == "queued":
            assert time.monotonic() < deadline, self.log()[-2000:]
            entry = self.json(f"/history/{done.prompt_id}", user).get(done.prompt_id)
            if entry is None:
                time.sleep(0.03)
                continue
            shown = entry["outputs"].values()
            done.images = [image for outputs in shown for image in outputs.get("images", [])]
            done.status = "ok" if entry["status"]["status_str"] == "success" else "error"
            for kind, data in entry["status"]["messages"]:
                if kind in ("execution_error", "execution_interrupted"):
                    done.status, done.node, done.kind = "error", str(data["node_id"]), data.get("exception_type", kind)
                    done.message = str(data.get("exception_message", kind)).strip()
        return done

    def draw(self, graph: Mapping[str, Any], user: str = "", **more: Any) -> Done:
        """Queue a graph and wait for its end."""
        return self.wait(self.queue(graph, user, **more), user)

    def picture(self, image: Mapping[str, Any], user: str = "", route: str = "/view") -> numpy.ndarray:
        """A picture that a user may see, ``[H, W, C]``."""
        from PIL import Image

        status, body = self.ask("GET", f"{route}?{urlencode(image)}", user=user)
        assert status == 200, body[:300]
        return numpy.asarray(Image.open(BytesIO(body)).convert("RGB"))

    def pictures(self, done: Done, user: str = "") -> list[numpy.ndarray]:
        """All pictures of a prompt."""
        return [self.picture(image, user) for image in done.images]

    # ---- what really happened ----

    def noted(self, kind: str, prompt_id: str | None = None) -> list[numpy.ndarray]:
        """What the spy saw, in order: ``text`` that reached the network, or ``picture`` that was decoded.

        Args:
            kind: of the two.
            prompt_id: of one prompt; None for all, ``none`` for what ran outside of any.
        """
        paths = [path for path in self.spied.glob(f"{kind}@*.npy") if prompt_id in (None, path.name.split("@")[1])]
        return [numpy.load(path) for path in sorted(paths, key=lambda path: path.name.split("@")[2])]

    def forget(self) -> None:
        """Remove what the spy saw."""
        for path in self.spied.glob("*.npy"):
            path.unlink()

    def saw(self, text: torch.Tensor, prompt_id: str | None = None) -> bool:
        """Whether the network was run on a text as it was written."""
        wanted = text[0].numpy()
        for rows in self.noted("text", prompt_id):
            for row in rows:
                same = row.shape[-1] == wanted.shape[-1] and len(row) >= len(wanted)
                if same and numpy.allclose(row[: len(wanted)], wanted, atol=1e-4):
                    return True
        return False

    def audit(self) -> list[dict[str, Any]]:
        """Lines of the audit log."""
        return [json.loads(line) for line in self.audit_path.read_text(encoding="utf-8").splitlines()]


def start(host: Any, folder: Path, text: str, variables: Mapping[str, str], arguments: Sequence[str]) -> str:
    """What a server says that does not start; "" where it does.

    Args:
        host: where to start it.
        folder: for it, which is made.
        text: of its policy.
        variables: of its environment.
        arguments: more of main.py.
    """
    folder.mkdir()
    try:
        with mock.patch.dict("os.environ", variables), Armed(host, folder, text, arguments=tuple(arguments)):
            return ""
    except ServerError as error:
        return str(error)


def new_id() -> str:
    """An id for a prompt."""
    return str(uuid.uuid4())
