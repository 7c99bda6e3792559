"""One ordinary server: HTTP, websocket, history, pictures, and a clean end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safeguidance.headless.hosts import make_host
from tools.server import ComfyServer, ServerError

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0xFF0000},
    },
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "served"}},
}


def test_a_real_server_runs_a_prompt(host):
    named = os.environ.get("SAFEGUIDANCE_PACK", "none")
    with ComfyServer(make_host(host.path), pack=None if named == "none" else Path(named)) as server:
        info = server.object_info()
        assert "KSampler" in info
        assert set(host.pack_nodes) <= set(info)
        done = server.run(GRAPH, timeout=60)
        assert done.ok, done
        executing = [data["node"] for kind, data in done.messages if kind == "executing" and data.get("node")]
        assert executing == ["1", "2", "3"]
        (image,) = done.images()
        assert server.view(image).startswith(b"\x89PNG")
        bad = {**GRAPH, "1": {"class_type": "EmptyImage", "inputs": {**GRAPH["1"]["inputs"], "width": 0}}}
        refused = server.run(bad)
        assert not refused.ok
        assert refused.rejected["node_errors"]["1"]["class_type"] == "EmptyImage"
        assert server.run(GRAPH, timeout=60).ok
        with pytest.raises(ServerError, match="answered 404"):
            server.get("/view", filename="none.png", type="output")
        base = server.base_dir
    assert not server.running
    assert not base.exists()


def test_a_server_that_does_not_start_says_why(host):
    with (
        pytest.raises(ServerError, match="stopped with exit code"),
        ComfyServer(make_host(host.path), pack=None, arguments=("--no-such-flag",)),
    ):
        pytest.fail("it started")
