"""Pictures of all that a user sees first, to be looked at: examples in both renderers, help pages, the README.

One editor in one browser, through tests/browser. Nothing of it is committed but what README shows: its picture of the
first example after a run, docs/img/start_here.png, which the part start_here makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safeguidance.headless.hosts import PACK_ROOT, Host

from .browser import NEWEST_FRONTEND, Editor

SIZES = ((1600, 1000), (1366, 768))
RENDERERS = {"classic": False, "nodes2": True}
PARTS = ("examples", "help", "readme", "start_here")
FIRST = "1_start_here"
START_HERE = PACK_ROOT / "docs" / "img" / "start_here.png"
# as its folder is called where people install it; the editor shows it on the nodes
FOLDER = "safeguidance"
DOCS = PACK_ROOT / "web" / "docs"
EXAMPLES = PACK_ROOT / "example_workflows"
# as a repository's page shows it
README_WIDTH = 980
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:880px;margin:32px auto;color:#1f2328}"
    "table{border-collapse:collapse;display:block;overflow:auto}td,th{border:1px solid #d1d9e0;padding:6px 13px}"
    "pre,code{background:#f0f1f3;font-size:14px}pre{padding:16px;overflow:auto}img{max-width:100%}"
    "h1,h2{border-bottom:1px solid #d1d9e0}"
)


def take(host: Host, out: Path, parts: tuple[str, ...] = PARTS, only: str = "", newest: bool = False) -> int:
    """Write OUT/examples, OUT/help and OUT/readme.png, and what was measured on the way as OUT/screenshots.json.

    The part start_here writes docs/img/start_here.png.

    Args:
        host: Checkout whose editor is used.
        out: Folder to write into.
        parts: Which of ``PARTS``.
        only: Part of the name of an example or a node; "" takes all.
        newest: Use the newest frontend in place of the host's own.

    Returns:
        The exit code: 1 if a help page or the README cannot be read as it is, else 0.
    """
    seen: dict[str, Any] = {}
    with Editor(host, frontend=NEWEST_FRONTEND if newest else None, folder=FOLDER) as editor:
        if "start_here" in parts:
            _start_here(editor)
        if "help" in parts:
            (out / "help").mkdir(parents=True, exist_ok=True)
            for page in _names(DOCS, "SafeGuidance_*.md", only):
                seen[page] = editor.call("helpPage", type=page, path=str(out / "help" / f"{page}.png"))
                print(f"{page}: {seen[page]['height']} px, {seen[page]['columns']} columns", flush=True)
        if "readme" in parts:
            seen["README"] = _readme(editor, out)
            print(f"README: {seen['README']['height']} px", flush=True)
        if "examples" in parts:
            _examples(editor, out / "examples", only)
    out.mkdir(parents=True, exist_ok=True)
    (out / "screenshots.json").write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
    tall = [name for name, lies in seen.items() if lies["wide"] > 0 or (name != "README" and lies["height"] > 1600)]
    broken = seen.get("README", {}).get("broken", [])
    for name in [*tall, *broken]:
        print(f"LOOK AT {name}")
    return int(bool(tall or broken))


def _names(folder: Path, pattern: str, only: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(pattern) if only in path.stem)


def _examples(editor: Editor, out: Path, only: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for renderer, vue in RENDERERS.items():
        editor.call("setting", name="Comfy.VueNodes.Enabled", value=vue)
        for width, height in SIZES:
            editor.call("resize", width=width, height=height)
            for name in _names(EXAMPLES, "*.json", only):
                editor.call("load", pack=editor.pack, name=name, template=True)
                scale = editor.call("framed")["scale"]
                editor.call("screenshot", path=str(out / f"{name}-{renderer}-{width}.png"))
                print(f"{name}, {renderer}, {width}x{height}: scale {scale:.2f}", flush=True)


def _start_here(editor: Editor) -> None:
    """The first example after a run, cut out at its nodes."""
    width, height = SIZES[0]
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("resize", width=width, height=height)
    editor.call("load", pack=editor.pack, name=FIRST, template=True)
    editor.call("pictures", nodes=list(editor.run()["shown"]))
    boxes = [node["box"] for node in editor.call("framed")["boxes"]]
    left, top = min(box[0] for box in boxes) - 20, min(box[1] for box in boxes) - 30
    right, bottom = max(box[2] for box in boxes) + 20, max(box[3] for box in boxes) + 20
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    editor.call("screenshot", path=str(START_HERE), clip=clip)
    print(f"wrote {START_HERE}", flush=True)


def _readme(editor: Editor, out: Path) -> dict[str, Any]:
    # an extra of the project, dev, brings it
    from markdown_it import MarkdownIt

    out.mkdir(parents=True, exist_ok=True)
    text = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = out / "readme.html"
    page.write_text(
        f'<meta charset="utf-8"><base href="{PACK_ROOT.as_uri()}/"><style>{STYLE}</style>{body}', encoding="utf-8"
    )
    lies = editor.call("written", url=page.as_uri(), width=README_WIDTH, path=str(out / "readme.png"))
    return dict(lies)
