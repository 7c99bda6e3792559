"""A stand-in for a ComfyUI server, for tests of what talks to one: `python -m tests.core.comfy_stub PORT [options]`.

It has the routes and messages of the real one (tests/host compares them) and draws a small picture of a colour that
prompt, seed and guard decide. Options make it slow, refuse, fail or die, as real ones do.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def node(inputs, outputs=(), names=None, shows=False, optional=None):
    """A node definition as /object_info gives it."""
    return {
        "input": {"required": inputs, "optional": optional or {}},
        "output": list(outputs),
        "output_name": list(names or outputs),
        "output_node": shows,
    }


def object_info(pack=True):
    """Definitions of the host's nodes, and of those of the pack that evaluate puts in."""
    info = json.loads((ROOT / "tools" / "data" / "object_info.json").read_text(encoding="utf-8"))
    if pack:
        trace = ["MODEL", "SAFEGUIDANCE_TRACE", "STRING"]
        info["SafeGuidance_GuardModel"] = node(
            {"model": ["MODEL", {}], "clip": ["CLIP", {}]},
            trace,
            ["MODEL", "TRACE", "guard"],
            optional={"preset": [["light", "balanced", "strict"], {"default": "balanced"}]},
        )
        info["SafeGuidance_RunMeter"] = node({"model": ["MODEL", {}]}, ["MODEL", "SAFEGUIDANCE_METER"])
        more = {"meter": ["SAFEGUIDANCE_METER", {}], "trace": ["SAFEGUIDANCE_TRACE", {}]}
        more["note"] = ["STRING", {"forceInput": True}]
        info["SafeGuidance_RunRecord"] = node({"image": ["IMAGE", {}]}, ["STRING"], shows=True, optional=more)
    return info


WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "model.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a house", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1,
            "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
}  # fmt: skip


def draw(graph):
    """PNG of a graph, and the texts that its records show."""
    from PIL import Image

    sampler = next(value for value in graph.values() if value["class_type"] == "KSampler")
    prompt = graph[sampler["inputs"]["positive"][0]]["inputs"]["text"]
    guarded = any(value["class_type"] == "SafeGuidance_GuardModel" for value in graph.values())
    opened = guarded and "harm" in prompt
    seen = hashlib.sha256(f"{prompt}|{sampler['inputs']['seed']}|{opened}".encode()).digest()
    file = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(seen[:3])).save(file, "PNG")
    texts = {}
    for key, value in graph.items():
        if value["class_type"] == "SafeGuidance_RunRecord":
            record = {"pictures": 1}
            if "meter" in value["inputs"]:
                record["cost"] = {"evaluations": 40, "calls": 20, "peak_bytes": 1 << 20}
            if "trace" in value["inputs"]:
                harm = 0.9 if opened else 0.1
                record["guard"] = {
                    "method": "Stub", "decision": "redirected" if opened else "harmless", "categories": ["violence"],
                    "scores": [[harm]], "harm": harm, "harmful": opened, "opened": opened, "guarded": True,
                    "extra_evaluations": 0,
                }  # fmt: skip
            texts[key] = json.dumps(record)
    return file.getvalue(), texts, prompt


class Stub:
    """The server's state.

    Args:
        options: what the command line says.
    """

    def __init__(self, options):
        self.options = options
        self.sockets, self.history, self.files, self.waiting = {}, {}, {}, asyncio.Queue()
        self.pending, self.running, self.count = {}, None, 0

    async def work(self):
        """Run what is queued, one after the other."""
        while True:
            number, graph, client = await self.waiting.get()
            if self.pending.pop(number, None) is None:
                continue
            self.running = number
            await self.run(number, graph, client)
            self.running = None

    async def tell(self, client, kind, **data):
        socket_ = self.sockets.get(client)
        if socket_ is not None and not socket_.closed:
            await socket_.send_json({"type": kind, "data": data})

    async def run(self, number, graph, client):
        began = int(time.time() * 1000)
        messages = [["execution_start", {"prompt_id": number, "timestamp": began}]]
        await self.tell(client, "execution_start", prompt_id=number)
        await self.tell(client, "progress", prompt_id=number, value=1, max=20)
        await asyncio.sleep(self.options.delay)
        self.count += 1
        if self.options.die_after and self.count >= self.options.die_after:
            os._exit(9)
        if self.options.hang:
            await asyncio.sleep(3600)
        png, texts, prompt = draw(graph)
        entry = {"outputs": {}, "status": {"messages": messages, "status_str": "success"}}
        end = {"prompt_id": number, "timestamp": int(time.time() * 1000)}
        if self.options.fail and self.options.fail in prompt:
            kind = "execution_error"
            end |= {"node_id": "5", "node_type": "KSampler", "exception_type": "RuntimeError"}
            end["exception_message"] = "the stub was told to fail"
        else:
            kind = "execution_success"
            for key, value in graph.items():
                if value["class_type"] == "PreviewImage":
                    names = [f"{number}_{key}_{place}.png" for place in range(self.options.pictures)]
                    self.files |= dict.fromkeys(names, b"no picture" if self.options.broken else png)
                    shown = [{"filename": name, "subfolder": "", "type": "temp"} for name in names]
                    entry["outputs"][key] = {"images": shown}
            entry["outputs"] |= {key: {"text": [text]} for key, text in texts.items()}
        messages.append([kind, end])
        self.history[number] = entry
        await self.tell(client, kind, prompt_id=number)


def application(options):
    """The routes of the server."""
    from aiohttp import web

    stub, info = Stub(options), object_info(not options.no_pack)

    async def begin(app):
        app["work"] = asyncio.create_task(stub.work())

    async def nodes(request):
        return web.json_response(info)

    async def stats(request):
        system = {"comfyui_version": "0.0-stub", "python_version": sys.version, "pytorch_version": "none"}
        return web.json_response({"system": system, "devices": [{"name": "stub"}]})

    async def listen(request):
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        if options.silent:
            await socket_.close()
            return socket_
        stub.sockets[request.query["clientId"]] = socket_
        async for _ in socket_:
            pass
        return socket_

    async def prompt(request):
        body = await request.json()
        if options.refuse:
            errors = [{"message": "Value not in list", "details": "ckpt_name: 'model.safetensors' not in []"}]
            found = {"1": {"class_type": "CheckpointLoaderSimple", "errors": errors}}
            return web.json_response({"error": {"message": "invalid"}, "node_errors": found}, status=400)
        number = uuid.uuid4().hex
        stub.pending[number] = True
        await stub.waiting.put((number, body["prompt"], body["client_id"]))
        return web.json_response({"prompt_id": number, "number": 1, "node_errors": {}})

    async def history(request):
        found = stub.history.get(request.match_info["number"])
        return web.json_response({request.match_info["number"]: found} if found else {})

    async def forget(request):
        for number in (await request.json()).get("delete", []):
            stub.history.pop(number, None)
        return web.Response()

    async def queue(request):
        running = [[0, stub.running, {}]] if stub.running else []
        return web.json_response({"queue_running": running, "queue_pending": [[1, n, {}] for n in stub.pending]})

    async def change(request):
        for number in (await request.json()).get("delete", []):
            stub.pending.pop(number, None)
        return web.Response()

    async def view(request):
        found = stub.files.pop(request.query["filename"], None)
        return web.Response(body=found) if found else web.Response(status=404)

    async def interrupt(request):
        return web.Response()

    app = web.Application()
    app.on_startup.append(begin)
    app.add_routes([web.get("/object_info", nodes), web.get("/system_stats", stats), web.get("/ws", listen)])
    app.add_routes([web.post("/prompt", prompt), web.get("/history/{number}", history), web.post("/history", forget)])
    app.add_routes([web.get("/queue", queue), web.post("/queue", change), web.get("/view", view)])
    app.add_routes([web.post("/interrupt", interrupt)])
    return app


def main():
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--fail", default="")
    parser.add_argument("--pictures", type=int, default=1)
    for flag in ("refuse", "silent", "hang", "broken", "no-pack"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    from aiohttp import web

    web.run_app(application(options), host="127.0.0.1", port=options.port, print=None)


def free_port():
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(*options, port=0):
    """Start one in a process of its own; returns address and process."""
    port = port or free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.core.comfy_stub", str(port), *options], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/system_stats", timeout=5).close()
            return url, process
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                raise RuntimeError(f"the stub ended with {process.returncode}") from None
            time.sleep(0.05)
    process.kill()
    raise RuntimeError("the stub does not answer")


@contextmanager
def serving(*options, port=0):
    """One that is killed at the end; gives its address."""
    url, process = start(*options, port=port)
    try:
        yield url
    finally:
        process.kill()
        process.wait()


def write_config(folder, servers, prompts=6, arms="", more=""):
    """Workflow, prompts and configuration of an evaluation; half of the prompts ask for harm."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workflow.json").write_text(json.dumps(WORKFLOW))
    rows = [f"a harm {n},,violence" if n % 2 else f"a house {n},," for n in range(prompts)]
    (folder / "prompts.csv").write_text("prompt,safe_prompt,category\n" + "\n".join(rows) + "\n")
    path = folder / "config.toml"
    path.write_text(
        f'workflow = "workflow.json"\nresults = "results"\njudges = []\n{more}\n[[prompts]]\nfile = "prompts.csv"\n'
        f"{arms}\n[run]\nservers = {json.dumps(list(servers))}\nwait = 20\n"
    )
    return path


if __name__ == "__main__":
    main()
