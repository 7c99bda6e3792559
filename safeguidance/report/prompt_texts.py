"""The prompts behind a node, found in the graph that is run (in API format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SKIPPED = ("negative", "uncond", "negative_prompt", "conditioning_negative")
_TEXTS = ("text", "prompt", "text_g", "text_l", "clip_l", "clip_g", "t5xxl")


def prompts_behind(graph: Mapping[str, Any], node: str) -> tuple[str, ...]:
    """Texts that nodes with a text encoder get upstream of a node, negative prompts left out, each once.

    Args:
        graph: node id -> ``{"class_type": ..., "inputs": {...}}``, where a link is ``[node id, output]``.
        node: where to start; its own texts do not count.
    """
    found: dict[str, None] = {}
    seen: set[str] = {node}
    waiting = [node]
    while waiting:
        at = waiting.pop()
        inputs = _inputs(graph, at)
        if at != node and any("clip" in name and _link(value) for name, value in inputs.items()):
            for name in _TEXTS:
                text = _text(graph, inputs.get(name))
                if text.strip():
                    found[text] = None
        for name, value in inputs.items():
            source = _link(value)
            if source and name not in _SKIPPED and source not in seen:
                seen.add(source)
                waiting.append(source)
    return tuple(found)


def _inputs(graph: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    found = graph.get(node)
    inputs = found.get("inputs") if isinstance(found, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _link(value: Any) -> str:
    """The node that a value comes from; "" where it is no link."""
    return str(value[0]) if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], int) else ""


def _text(graph: Mapping[str, Any], value: Any) -> str:
    """A text as it is written, or as the node behind a link holds it."""
    if isinstance(value, str):
        return value
    source = _link(value)
    texts = [text for text in _inputs(graph, source).values() if isinstance(text, str)] if source else []
    return texts[0] if len(texts) == 1 else ""
