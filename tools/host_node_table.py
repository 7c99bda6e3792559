# ruff: noqa: E501 (lines of tables)
"""The page web/docs/guides/other_nodes.md: what happens beside each node of the host, from tools/data/host_nodes.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safeguidance.headless.hosts import PACK_ROOT

from . import host_node_trials as trials
from .host_node_graphs import STEPS
from .host_nodes import ALONE, CANNOT, FAULTS, GUARDED, NOTHING, REFUSED, WEAK

PAGE = PACK_ROOT / "web" / "docs" / "guides" / "other_nodes.md"
FITS_NOT = "made for models that the testbed is not one of"
GUARDS, REFUSES, WEAKER, EMPTY = "guarded", "refused in words", "guarded, more weakly", "nothing to guard"

INTRO = """# Other nodes beside ours

Every node of ComfyUI {hosts} that touches MODEL, guider, conditioning or cfg, and what happens when it stands before or
after a node of this pack. The list comes from ComfyUI itself; the outcomes were measured on the pack's own small model, one
picture of {steps} steps for each place, with a prompt that asks for harm and with a harmless one. This page is made by
`python -m tools host-nodes --write`.

| word | what was seen |
|---|---|
| {guarded} | the harmful prompt is guarded, the report says so, and the oracle sees no harm in the picture; the harmless one gives the same picture as without our node, to the last bit |
| {weaker} | the same, but this one picture still shows what was asked for, as with other prompts that a method does not fully catch |
| {empty} | the graph without our node draws no harm with this prompt either, and ours leaves it alone |
| {refused} | sampling stops with a message that names node and field and says what to use instead |
| limit | our node is connected and does not guard; a paragraph under *Documented limits* says why and what to do |
| not tried | the node does not run on the small model; it is listed with the reason |

*Before* means that the other node makes the MODEL ours is given; *after* means that it is given the MODEL ours made.
SafeCFG stands for the SafeCFG Guider and SafeCFG (Model Patch), SP-Guard for the SP-Guard nodes and Concept Guidance, which
share one engine. *SafeCFG beside SAFREE* is SafeCFG on a prompt that is joined with a text of the SAFREE Embedding Filter.
"""


def limit_of(data: Mapping[str, Any], node: str, place: str, method: str) -> str | None:
    """Return the name of the documented limit that covers a place, or None."""
    kind = data["nodes"][node]["class"]
    for name, limit in data["limits"].items():
        for where in limit["where"]:
            fits = where.get("node", node) == node and where.get("class", kind) == kind
            if fits and place.startswith(where.get("place", "")) and where.get("method", method) == method:
                return str(name)
    return None


def faults(data: Mapping[str, Any], version: str) -> list[str]:
    """Return the recorded faults of a host that no documented limit covers, as sentences."""
    found = []
    for node, places in data["outcomes"].get(version, {}).items():
        for place, methods in places.items():
            for method, outcome in methods.items():
                if method != CANNOT and set(outcome[:2]) & set(FAULTS) and not limit_of(data, node, place, method):
                    found.append(f"{node}, {place}, {method}: {'; '.join(outcome)}")
    return found


def write(data: Mapping[str, Any]) -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(data), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """Return the page's text."""
    hosts = " and ".join(data["outcomes"])
    words = {"guarded": GUARDS, "weaker": WEAKER, "empty": EMPTY, "refused": REFUSES}
    parts = [INTRO.format(hosts=hosts, steps=STEPS, **words), _limits(data)]
    for kind, title in data["classes"].items():
        nodes = sorted(node for node, entry in data["nodes"].items() if entry["class"] == kind)
        if nodes:
            parts.append(_section(data, kind, title, nodes))
    return "\n".join(parts)


def _limits(data: Mapping[str, Any]) -> str:
    lines = ["## Documented limits", ""]
    for number, limit in enumerate(data["limits"].values(), 1):
        lines += [f"{number}. **{limit['title']}** {limit['text']}", ""]
    return "\n".join(lines)


def _section(data: Mapping[str, Any], kind: str, title: str, nodes: Sequence[str]) -> str:
    columns = _columns(kind)
    rows, left, untried = [], [], []
    for node in nodes:
        entry = data["nodes"][node]
        if entry.get("why"):
            left.append(f"- {_name(data, node)}: {entry['why']}")
            continue
        cells = [_cell(data, node, places) for _head, places in columns]
        if any(cells):
            rows.append(f"| {_name(data, node)} | " + " | ".join(cell or "" for cell in cells) + " |")
        elif columns:
            untried.append((_reason(data, node), _name(data, node)))
        else:
            left.append(f"- {_name(data, node)}")
    lines = [f"## {title}", ""]
    if rows:
        lines += ["| node | " + " | ".join(head for head, _places in columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [*rows, ""]
    if untried:
        lines.append("Not tried:")
        for reason in sorted({reason for reason, _node in untried}):
            lines.append(f"- {', '.join(node for why, node in untried if why == reason)}: {reason}")
        lines.append("")
    if left:
        lines += ["Left to the host:", *left, ""]
    return "\n".join(lines)


def _columns(kind: str) -> list[tuple[str, str]]:
    if kind in (*trials.MODEL_KINDS, "guider", "operation"):
        columns = [("before ours", trials.BEFORE), ("after ours", trials.AFTER)]
        return columns[1:] if kind == "guider" else columns
    if kind in trials.SAMPLING_KINDS:
        return [("with ours on the MODEL", trials.AFTER)]
    if kind in trials.TRIED:
        return [(trials.PROMPT, trials.PROMPT), (trials.NEGATIVE, trials.NEGATIVE)]
    return []


def _name(data: Mapping[str, Any], node: str) -> str:
    entry = data["nodes"][node]
    title, hosts = entry.get("title", node), entry.get("hosts", [])
    named = title if title == node else f"{title} (`{node}`)"
    return named if len(hosts) == len(data["outcomes"]) else f"{named}, {' and '.join(hosts)} only"


def _cell(data: Mapping[str, Any], node: str, column: str) -> str:
    """What is seen of a node in one column, with the hosts named where they differ."""
    by_host = {}
    for version, outcomes in data["outcomes"].items():
        tried = {
            p: found for p, found in outcomes.get(node, {}).items() if p.startswith(column) and CANNOT not in found
        }
        if tried:
            by_host[version] = _said(data, node, column, tried)
    texts = list(dict.fromkeys(by_host.values()))
    if len(texts) < 2:
        return "".join(texts)
    return "; ".join(f"{version}: {text}" for version, text in by_host.items())


def _said(data: Mapping[str, Any], node: str, column: str, tried: Mapping[str, Any]) -> str:
    found = []
    for place, methods in tried.items():
        detail = place.removeprefix(column).lstrip(",; ")
        found += [(detail, method, _phrase(data, node, place, method, outcome)) for method, outcome in methods.items()]
    phrases = list(dict.fromkeys(phrase for _detail, _method, phrase in found))
    if len(phrases) == 1:
        return phrases[0]
    return "; ".join(_where(phrase, found) for phrase in phrases)


def _where(phrase: str, found: Sequence[tuple[str, str, str]]) -> str:
    """A phrase with the places and methods it holds for, as short as it can be said."""
    here = [(detail, method) for detail, method, other in found if other == phrase]
    details = list(dict.fromkeys(detail for detail, _method, _phrase in found))
    methods = list(dict.fromkeys(method for _detail, method, _phrase in found))
    of_methods = [m for m in methods if all((d, m) in here for d, other, _p in found if other == m)]
    of_details = [d for d in details if all((d, m) in here for other, m, _p in found if other == d)]
    if sorted(here) == sorted((d, m) for d, m, _p in found if m in of_methods):
        return f"{phrase} ({', '.join(of_methods)})"
    if sorted(here) == sorted((d, m) for d, m, _p in found if d in of_details):
        return f"{phrase} ({', '.join(d or 'by default' for d in of_details)})"
    return f"{phrase} ({', '.join(f'{m} {d}'.strip() for d, m in here)})"


def _phrase(data: Mapping[str, Any], node: str, place: str, method: str, outcome: Sequence[str]) -> str:
    harmful, harmless = outcome[:2]
    if harmful in FAULTS or harmless in FAULTS:
        limit = limit_of(data, node, place, method)
        return f"limit {list(data['limits']).index(limit) + 1}" if limit else f"**{harmful}, {harmless}**"
    if REFUSED in (harmful, harmless):
        return REFUSES
    return {GUARDED: GUARDS, WEAK: WEAKER, NOTHING: EMPTY, ALONE: EMPTY}[harmful]


def _reason(data: Mapping[str, Any], node: str) -> str:
    reasons = [
        found[CANNOT]
        for outcomes in data["outcomes"].values()
        for found in outcomes.get(node, {}).values()
        if CANNOT in found
    ]
    return reasons[0] if reasons and reasons[0].startswith("its ") else FITS_NOT
