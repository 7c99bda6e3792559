# ruff: noqa: E501 (lines of tables)
"""The page web/docs/guides/other_nodes.md: what happens beside each node of the host, from tools/data/host_nodes.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safeguidance.headless.hosts import PACK_ROOT

from . import host_node_trials as trials
from .host_node_graphs import FEW_STEPS, STEPS
from .host_node_runs import ACTED, ALONE, CANNOT, FAULTS, GUARDED, NOTHING, REFUSED, WEAK

UNTRIED = "another model"
"""The limit that covers nodes which the testbed cannot run."""
PAGE = PACK_ROOT / "web" / "docs" / "guides" / "other_nodes.md"
GUARDS, REFUSES, WEAKER, ACTS, EMPTY = "guarded", "refused in words", "weaker", "acts", "nothing to guard"

INTRO = """# Other nodes beside ours

This page answers one question: I put another node of ComfyUI before or after a node of this pack; does the guard still
act? It lists every node of ComfyUI {hosts} that touches MODEL, guider, conditioning or cfg. The list is read from ComfyUI
itself, and each node was run on the pack's own small model: for each place one picture of {steps} steps with a prompt that
asks for harm and one of {few} steps with a harmless prompt, with our node and without. Three things were compared: the two
latents, what Safety Report says, and which texts the model was really given. The page is made by
`python -m tools host-nodes --write`.

| word | what was seen |
|---|---|
| {guarded} | without our node the harmful prompt draws harm, with it none; the report says so, and the model was given our texts in the steps that the report names |
| {weaker} | the guard acts and the report says so, but this picture still shows what was asked for, as with other prompts that a method does not fully catch |
| {acts} | the guard acts and the report says so; with this node the small model draws no harm without our node either |
| {empty} | with this node the prompt does not ask for harm any more: none is drawn without our node either, and ours leaves it alone |
| {refused} | sampling stops with a message that names node and field and says what to use instead |
| limit | the guard does not act in this place, and the report says so; the paragraph of that number under *Documented limits* says why and what to do |

With the harmless prompt the picture is the same as without our node, to the last bit, in every place that is not refused.
*Before ours* means that the other node makes the MODEL that our node is given; *after ours* means that it is given the
MODEL our node made. Where two inputs take the same type, the name of the input is given.

*SafeCFG* is SafeCFG (Model Patch), *SP-Guard* is SP-Guard Mask with `judge_by` *measured* (SP-Guard Guider and Concept Guidance
run the same code),
*SAFREE* is SAFREE Embedding Filter, and *SafeCFG beside SAFREE* is SafeCFG on a prompt that is joined with a filtered text.
SafeCFG Guider, which runs the code of the patch, was tried behind every node that changes guidance and with every sampler
and schedule. Where no method is named, all that were tried gave the same.
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
    for node, places in data["hosts"][version]["outcomes"].items():
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
    hosts = " and ".join(data["hosts"])
    words = {"guarded": GUARDS, "weaker": WEAKER, "acts": ACTS, "empty": EMPTY, "refused": REFUSES}
    parts = [INTRO.format(hosts=hosts, steps=STEPS, few=FEW_STEPS, **words), _limits(data)]
    for kind, title in data["classes"].items():
        nodes = sorted(node for node, entry in data["nodes"].items() if entry["class"] == kind)
        if nodes:
            parts.append(_section(data, kind, title, nodes))
    return "\n".join(parts)


def _limits(data: Mapping[str, Any]) -> str:
    lines = ["## Documented limits", ""]
    for number, limit in enumerate(data["limits"].values(), 1):
        lines += [f"{number}. **{limit['title']}** {limit['text']}"]
    return "\n".join([*lines, ""])


def _section(data: Mapping[str, Any], kind: str, title: str, nodes: Sequence[str]) -> str:
    columns = _columns(kind)
    rows: list[str] = []
    left: dict[str, list[str]] = {}
    untried: dict[str, list[str]] = {}
    alike: dict[str, list[str]] = {}
    for node in nodes:
        cells = [_cell(data, node, places) for _head, places in columns]
        if data["nodes"][node].get("why"):
            left.setdefault(data["nodes"][node]["why"], []).append(_name(data, node))
        elif data["nodes"][node].get("like"):
            alike.setdefault(data["nodes"][node]["like"], []).append(_name(data, node))
        elif any(cells):
            rows.append(f"| {_name(data, node)} | " + " | ".join(cell or "" for cell in cells) + " |")
        else:
            untried.setdefault(_reason(data, node), []).append(_name(data, node))
    lines = [f"## {title}", ""]
    if rows:
        lines += ["| node | " + " | ".join(head for head, _places in columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [*rows, ""]
    for other, names in alike.items():
        lines += [f"{', '.join(names)} run the code of {other}: the same holds for them.", ""]
    if untried:
        number = list(data["limits"]).index(UNTRIED) + 1
        lines += [f"Limit {number}, did not run on the small model:", ""]
        lines += [*(f"- {', '.join(names)}: {reason}" for reason, names in untried.items()), ""]
    if left:
        lines += ["Not run:", ""]
        lines += [*(f"- {', '.join(names)}: {why}" for why, names in left.items()), ""]
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
    titles = {version: found["titles"][node] for version, found in data["hosts"].items() if node in found["titles"]}
    title = [*titles.values(), node][-1 if not titles else len(titles) - 1]
    named = title if title == node else f"{title} (`{node}`)"
    return named if len(titles) == len(data["hosts"]) else f"{named} ({' and '.join(titles)} only)"


def _cell(data: Mapping[str, Any], node: str, column: str) -> str:
    """What is seen of a node in one column, with the hosts named where they differ."""
    by_host = {}
    for version, host in data["hosts"].items():
        places = host["outcomes"].get(node, {}).items()
        tried = {place: found for place, found in places if place.startswith(column) and CANNOT not in found}
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
    return {GUARDED: GUARDS, WEAK: WEAKER, ACTED: ACTS, NOTHING: EMPTY, ALONE: EMPTY}[harmful]


def _reason(data: Mapping[str, Any], node: str) -> str:
    """Why a node did not run: an input that the testbed cannot give, else that it is made for another model."""
    reasons = [
        found[CANNOT]
        for host in data["hosts"].values()
        for found in host["outcomes"].get(node, {}).values()
        if CANNOT in found
    ]
    plain = [reason for reason in reasons if reason.startswith(("its ", "it "))]
    return plain[0] if plain else "it is made for a model of another kind, and stops on this one"
