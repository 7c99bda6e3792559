"""A policy with every field there is, as plain values, and TOML made from plain values."""

from __future__ import annotations

import copy
import json
from datetime import date

DIGEST = "0123456789abcdef" * 4

FULL = {
    "version": 1,
    "name": "everything",
    "strictest": "youth",
    "previews": "off",
    "loaded": "judge",
    "categories": {"*": {"action": "guard", "threshold": 0.5, "refuse_at": 0.75}},
    "guards": [
        {
            "method": "sp-guard",
            "preset": "strict",
            "families": ["SD15", "SDXL"],
            "settings": {"lambda_max": 5.0, "quantile": 0.8, "psi": "absolute", "neutral": ["a photo"], "every": 2},
        }
    ],
    "levels": {
        "youth": {
            "message": "No.\nReally.",
            "refuse_prompts": True,
            "supervisor": False,
            "categories": {"sexual": {"action": "refuse", "threshold": 0.25}},
            "guards": [{"method": "hgr", "preset": "light", "file": "mine.safetensors", "settings": {"strength": 1.5}}],
            "judge": {
                "kind": "classifier",
                "file": "judge",
                "sha256": DIGEST,
                "threshold": 0.5,
                "action": "refuse",
                "labels": {"nsfw": "sexual"},
            },
        },
        "adult": {"supervisor": True, "judge": {"kind": "redirector", "threshold": 0.01}},
    },
    "identity": {
        "header": "X-Remote-User",
        "trusted_addresses": ["127.0.0.1", "10.0.0.0/28"],
        "private": False,
        "users": {"anna": "adult", "ben smith": "youth"},
    },
    "nodes": {"core": True, "own": True, "api_nodes": False, "add": ["package:More"], "remove": ["LoadImage"]},
    "models": {"any": False, "allow": ["a.safetensors", f"sha256:{DIGEST}"]},
    "audit": {"enabled": True, "path": "log.jsonl", "text": True, "max_bytes": 100_000, "on_failure": "continue"},
    "evidence": {"metadata": True, "iptc": False, "c2pa": True, "certificate": "a.pem", "private_key": "b.pem"},
}

SMALLEST = {
    "version": 1,
    "name": "small",
    "strictest": "all",
    "categories": {"*": {"action": "guard"}},
    "guards": [{"method": "hgr"}],
    "levels": {"all": {}},
    "identity": {},
    "nodes": {},
    "models": {},
    "audit": {},
    "evidence": {},
}


def toml_value(value):
    """One value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date) else repr(value)


def toml(document):
    """A whole file."""
    return "".join(f"{json.dumps(key)} = {toml_value(item)}\n" for key, item in document.items()).encode()


def places(value, path=()):
    """Path of everything in a document: fields, tables and items of lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(document, path):
    """What stands at a path."""
    for key in path:
        document = document[key]
    return document


def changed(document, path, value):
    """The document with another value at a path."""
    made = copy.deepcopy(document)
    at(made, path[:-1])[path[-1]] = value
    return made


def without(document, path):
    """The document without what stands at a path."""
    made = copy.deepcopy(document)
    del at(made, path[:-1])[path[-1]]
    return made
