"""The editor in a real browser: a ComfyUI server with its frontend, opened in Chromium, used by mouse and keyboard.

`tests/browser/driver.mjs` holds the browser (Node.js, playwright-core); `Editor` talks to it over two pipes. Needs
Chromium, Node.js, playwright-core (`make browser`) and a host with its frontend package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safeguidance.headless.boot import PACK_FOLDER
from safeguidance.headless.hosts import PACK_ROOT, Host

from .server import ComfyServer

FOLDER = PACK_ROOT / "tests" / "browser"
SCREENSHOTS = PACK_ROOT / "screenshots"
NEWEST_FRONTEND = FOLDER / "frontend" / "comfyui_frontend_package" / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_GET_THEM = (
    "Install Chromium and Node.js (on Debian and Ubuntu: apt install chromium fonts-dejavu-core nodejs npm; "
    "SAFEGUIDANCE_CHROMIUM names another browser), then run `make browser`."
)
SIZE = {"width": 1920, "height": 1200}
# No greeting over the canvas, no offer to download what a workflow needs, and few frames a second: on a small machine
# drawing takes the time that sampling needs.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MaximumFps": 5,
}


class BrowserError(Exception):
    """The browser could not do what it was asked to; the text says what."""


def find_chromium(environ: Mapping[str, str] | None = None) -> str:
    """Return the browser to use (SAFEGUIDANCE_CHROMIUM, else the first one on PATH), "" where there is none."""
    environ = os.environ if environ is None else environ
    named = environ.get("SAFEGUIDANCE_CHROMIUM", "").strip()
    if named:
        return named if Path(named).is_file() else ""
    return next(filter(None, (shutil.which(name, path=environ.get("PATH")) for name in BROWSERS)), "")


def missing(host: Host | None, environ: Mapping[str, str] | None = None) -> str:
    """Say what browser tests lack on this machine; "" where they can run.

    Args:
        host: Where they would run.
        environ: Environment to look in; the process's own by default.
    """
    environ = os.environ if environ is None else environ
    if host is None:
        return "no ComfyUI"
    lacking = [] if find_chromium(environ) else ["no Chromium"]
    if not shutil.which("node", path=environ.get("PATH")):
        lacking.append("no Node.js")
    if not (FOLDER / "node_modules" / "playwright-core" / "package.json").is_file():
        lacking.append("no playwright-core")
    check = subprocess.run([str(host.python), "-c", "import comfyui_frontend_package"], capture_output=True)
    if check.returncode:
        lacking.append(f"no comfyui-frontend-package in {host.label}")
    return ", ".join(lacking)


class Editor:
    """The editor of one running host. Use it as a context manager."""

    def __init__(
        self, host: Host, pack: Path = PACK_ROOT, frontend: Path | None = None, folder: str = PACK_FOLDER
    ) -> None:
        """Describe it; server and browser start when the context is entered.

        Args:
            host: The checkout; the process must run under its interpreter.
            pack: Folder of the pack to load.
            frontend: Folder of another frontend than the host's own.
            folder: Name of the pack's folder, which the editor shows on its nodes.
        """
        self._base = tempfile.TemporaryDirectory(prefix="safeguidance-editor-", ignore_cleanup_errors=True)
        base = Path(self._base.name)
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
        arguments = ("--front-end-root", str(frontend)) if frontend else ()
        self.server = ComfyServer(host, pack=pack, base_dir=base, frontend=True, arguments=arguments, folder=folder)
        self.pack = folder
        self.frontend_version = ""
        self._driver: subprocess.Popen[str] | None = None

    def __enter__(self) -> Editor:
        """Start server and browser, and open the editor.

        Raises:
            BrowserError: The browser did not start, or the editor did not open.
            ServerError: See `ComfyServer`.
        """
        try:
            self.server.__enter__()
            self._driver = subprocess.Popen(
                ["node", "driver.mjs"],
                cwd=FOLDER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            self.call("launch", executable=find_chromium(), **SIZE)
            self.frontend_version = str(self.call("open", url=self.server.url))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both."""
        self.stop()

    def stop(self) -> None:
        """Stop browser and server and remove their files; safe to call twice."""
        driver, self._driver = self._driver, None
        if driver is not None and driver.stdin is not None:
            # The end of its input is the driver's signal to close the browser.
            driver.stdin.close()
            try:
                driver.wait(timeout=30)
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()
        self.server.stop()
        self._base.cleanup()

    def call(self, method: str, *, seconds: float = 300.0, **arguments: Any) -> Any:
        """Ask the driver for one of its methods (see driver.mjs).

        Args:
            method: Name of the method.
            seconds: When it has not answered by then, the browser is stopped.
            arguments: What the method takes.

        Raises:
            BrowserError: It failed, or gave no answer.
        """
        driver = self._driver
        if driver is None or driver.stdin is None or driver.stdout is None:
            raise BrowserError(f"{method}: the browser is not running")
        watch = threading.Timer(seconds, driver.kill)
        watch.start()
        try:
            driver.stdin.write(json.dumps({"method": method, "args": arguments}) + "\n")
            driver.stdin.flush()
            line = driver.stdout.readline()
        except OSError as error:
            raise BrowserError(f"{method}: the browser has stopped") from error
        finally:
            watch.cancel()
        if not line:
            raise BrowserError(f"{method}: no answer within {seconds:.0f} s, or the browser has stopped")
        answer = json.loads(line)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return answer["result"]

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the nodes on the canvas by id: type, title, box, images, widgets, slots."""
        return {node["id"]: node for node in self.call("nodes")}

    def run(self, seconds: float = 600.0) -> dict[str, Any]:
        """Press Run and wait for the end.

        Returns:
            The prompt's entry in /history, with `shown`: per node id, the images it made.

        Raises:
            BrowserError: It ended in an error, or not in time.
        """
        end = self.call("run", timeout=seconds, seconds=seconds + 60)
        if end["kind"] != "execution_success":
            raise BrowserError(f"the run ended with {end}\n{self.server.log()[-3000:]}")
        entry = dict(self.server.get(f"/history/{end['prompt_id']}")[end["prompt_id"]])
        outputs = entry["outputs"].items()
        entry["shown"] = {node: shown["images"] for node, shown in outputs if shown.get("images")}
        return entry

    def screenshot(self, name: str) -> Path:
        """Write a picture of the whole window to screenshots/FRONTEND_VERSION/NAME.png; return its path."""
        path = SCREENSHOTS / self.frontend_version / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.call("screenshot", path=str(path))
        return path

    def errors(self) -> list[dict[str, str]]:
        """Return errors the page reported since a workflow was opened, without those about addresses outside.

        The frontend asks for things on the internet that a machine without it cannot have.
        """
        return [message for message in self.call("messages") if not _names_outside(message, self.server.url)]


def _names_outside(message: Mapping[str, str], own: str) -> bool:
    words = f"{message['text']} {message['url']}".replace("'", " ").split()
    return any(word.startswith(("http://", "https://")) and not word.startswith(own) for word in words)
