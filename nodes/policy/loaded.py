"""Pictures that were not drawn here: which nodes bring them in, and whose files they may read."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .refusal import Refused
from .state import Armed, Job, executing

MESSAGE = "Pictures from outside are not allowed on this server. Start from an empty latent."
OTHERS = "This file belongs to somebody else."
LOADERS = frozenset(
    {
        "ImageCompositor",
        "Load3D",
        "Load3DAdvanced",
        "Load3DAnimation",
        "LoadImage",
        "LoadImageDataSetFromFolder",
        "LoadImageMask",
        "LoadImageOutput",
        "LoadImageSetFromFolderNode",
        "LoadImageSetNode",
        "LoadImageTextDataSetFromFolder",
        "LoadImageTextSetFromFolderNode",
        "LoadLatent",
        "LoadTrainingDataset",
        "LoadVideo",
        "LoadVideoDataSetFromFolder",
        "LoadVideoTextDataSetFromFolder",
        "Painter",
        "WebcamCapture",
    }
)
"""Nodes of the host that bring pictures in; others are known by an input that takes an upload."""
_UPLOADS = frozenset({"image_upload", "video_upload", "animated_image_upload", "image_folder", "file_upload"})


_KNOWN: dict[Any, bool] = {}


def brings_in(node_class: Any) -> bool:
    """Whether a node brings pictures in that were not drawn here."""
    if node_class not in _KNOWN:
        _KNOWN[node_class] = _brings_in(node_class)
    return _KNOWN[node_class]


def _brings_in(node_class: Any) -> bool:
    if {node_class.__name__, _node_id(node_class)} & LOADERS:
        return True
    inputs = node_class.INPUT_TYPES()
    for group in ("required", "optional"):
        for spec in inputs.get(group, {}).values():
            options = spec[1] if isinstance(spec, (tuple, list)) and len(spec) > 1 else None
            if isinstance(options, Mapping) and any(options.get(name) for name in _UPLOADS):
                return True
    return False


def _node_id(node_class: Any) -> str:
    """Name of a node class in graphs, where the class knows it."""
    schema = getattr(node_class, "GET_SCHEMA", None)
    return "" if schema is None else str(schema().node_id)


def check_node(armed: Armed, node_class: Any, node: str = "") -> None:
    """Refuse a node that brings pictures in, where the policy says so.

    Raises:
        Refused: naming the node.
    """
    if armed.policy.loaded == "refuse" and brings_in(node_class):
        raise Refused(MESSAGE, f"the node {node_class.__name__} brings pictures in", node)


def check_file(armed: Armed, job: Job, path: Path) -> None:
    """Refuse a picture or file that a job must not read.

    Raises:
        Refused: if pictures from outside are refused, or the file is somebody else's.
    """
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    if armed.policy.loaded == "refuse" and kind not in ("audio", "text"):
        raise Refused(MESSAGE, f"a file was read: {path.name[:100]}")
    owner = armed.owner(path)
    if owner is None and _inside_input(path):
        return  # put there by who runs the server
    if not armed.may_see(job.caller, owner):
        raise Refused(OTHERS, f"a file of somebody else was read: {path.name[:100]}")


def gate(armed: Armed) -> None:
    """Put the check where nodes look up files of the input, output and temp folders."""
    import folder_paths

    def looks_up(before: Any) -> Any:
        def get_annotated_filepath(*args: Any, **kwargs: Any) -> Any:
            path = before(*args, **kwargs)
            if executing():
                check_file(armed, armed.job(), Path(path))
            return path

        return get_annotated_filepath

    armed.replaced.put(folder_paths, "get_annotated_filepath", looks_up)


def _inside_input(path: Path) -> bool:
    import folder_paths

    return path.resolve().is_relative_to(Path(folder_paths.get_input_directory()).resolve())
