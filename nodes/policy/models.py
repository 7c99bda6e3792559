"""Model files: which may be read, and their digests. Checked where the host reads the bytes, whatever node asks."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..host.files import FOLDER
from .refusal import Refused
from .state import Armed, Job

NO_MODELS = frozenset({"custom_nodes", "configs", "vae_approx", FOLDER})
"""Categories of the host that hold nothing that draws: code, settings, decoders for previews, the pack's guards."""
_EMBEDDING = re.compile(r"embedding:([^\s,()\[\]]+)")
_FILE = re.compile(r"[^\n]{1,400}\.[A-Za-z0-9_]{1,16}")
_ENDINGS = ("", ".safetensors", ".pt", ".bin")


class Models:
    """Names and digests of the model files of a server.

    Args:
        armed: the server.
    """

    def __init__(self, armed: Armed) -> None:
        self._armed, self._rules = armed, armed.policy.models
        self._digests: dict[tuple[str, int, int], str] = {}
        self._by_name: dict[str, str] = {}

    def check(self, path: Path, job: Job) -> None:
        """Note a file that is about to be read.

        Raises:
            Refused: if the policy does not allow it.
        """
        names = list(_names(path))
        if any(category in NO_MODELS for category, _ in names):
            return
        shown = names[0][1] if names else path.name
        known = self._armed.policy.audit.enabled or bool(self._rules.digests)
        digest = self.digest(path) if known else ""
        allowed = self._rules.any or any(self._rules.allows_name(name) for _, name in names)
        if not allowed and digest not in self._rules.digests:
            raise _not_allowed(shown, job)
        self._by_name[shown] = digest
        job.files[shown] = digest

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; computed once as long as it is not changed."""
        found = path.stat()
        key = (str(path.absolute()), found.st_mtime_ns, found.st_size)
        if key not in self._digests:
            self._digests[key] = _sha256(path)
        return self._digests[key]

    def digest_of(self, name: str) -> str:
        """Digest of a file that was read before, "" where it was not."""
        return self._by_name.get(name, "")

    def check_named(self, job: Job, inputs: Iterable[object], node: str) -> None:
        """Note the model files that inputs of a node name.

        Args:
            job: whose graph it is.
            inputs: values of the node's inputs.
            node: id of the node.

        Raises:
            Refused: if one of them is not allowed.
        """
        for value in inputs:
            if not isinstance(value, str):
                continue
            found = _files_named(value)
            if found:
                job.files[value] = self.digest_of(value)
                if not self._rules.allows_name(value) and not self._all_known(found):
                    raise _not_allowed(value, job, node)
            for name in _EMBEDDING.findall(value):
                self.check_embedding(name, _embedding_folders(), job, node)

    def _all_known(self, paths: Iterable[Path]) -> bool:
        """Whether the policy names the digest of each of these files."""
        return bool(self._rules.digests) and all(self.digest(path) in self._rules.digests for path in paths)

    def check_embedding(self, name: str, folders: Iterable[str], job: Job, node: str = "") -> None:
        """Note an embedding that a prompt names.

        Raises:
            Refused: if there is one of this name, and it is not allowed.
        """
        for shown, path in _embeddings(name, folders):
            if not self._rules.allows_name(shown) and not self._all_known([path]):
                raise _not_allowed(shown, job, node)
            job.files[shown] = self.digest(path)


def guard_loading(armed: Armed, models: Models) -> None:
    """Put the check where the host reads weights and embeddings."""
    import comfy.sd1_clip
    import comfy.utils

    def reads(before: Any) -> Any:
        def load_torch_file(ckpt: Any, *args: Any, **kwargs: Any) -> Any:
            models.check(Path(os.fspath(ckpt)), armed.job())
            return before(ckpt, *args, **kwargs)

        return load_torch_file

    def embeds(before: Any) -> Any:
        def load_embed(embedding_name: str, embedding_directory: Any, *args: Any, **kwargs: Any) -> Any:
            folders = [embedding_directory] if isinstance(embedding_directory, str) else embedding_directory or ()
            models.check_embedding(embedding_name, folders, armed.job())
            return before(embedding_name, embedding_directory, *args, **kwargs)

        return load_embed

    first = comfy.utils.load_torch_file
    armed.replaced.put(comfy.utils, "load_torch_file", reads)
    for module in list(sys.modules.values()):
        # what imported the function by name before
        if getattr(module, "__dict__", {}).get("load_torch_file") is first:
            armed.replaced.put(module, "load_torch_file", reads)
    armed.replaced.put(comfy.sd1_clip, "load_embed", embeds)


def _not_allowed(name: str, job: Job, node: str = "") -> Refused:
    message = f"The model file {name[:100]} is not allowed on this server. Choose another one."
    return Refused(message, f"model file {name[:200]} is not in models.allow", node)


def _categories() -> dict[str, list[str]]:
    import folder_paths

    return {name: folder_paths.get_folder_paths(name) for name in folder_paths.folder_names_and_paths}


def _names(path: Path) -> Iterator[tuple[str, str]]:
    """Category and name of a file, as loaders list it; several where folders lie in each other."""
    whole = os.path.abspath(path)
    for category, folders in _categories().items():
        for folder in folders:
            root = os.path.abspath(folder)
            if whole.startswith(root + os.sep):
                yield category, os.path.relpath(whole, root).replace(os.sep, "/")


def _files_named(name: str) -> list[Path]:
    """Model files of a name, as loaders list it; none where it is no such name."""
    import folder_paths

    found = []
    if not _FILE.fullmatch(name):
        return []
    for category in folder_paths.folder_names_and_paths:
        if category not in NO_MODELS and name in folder_paths.get_filename_list(category):
            path = folder_paths.get_full_path(category, name)
            if path is not None:
                found.append(Path(path))
    return found


def _embedding_folders() -> list[str]:
    return _categories().get("embeddings", [])


def _embeddings(name: str, folders: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The files that the host may take for a name: each one's name in its folder, and its path."""
    import comfy.sd1_clip

    for folder in comfy.sd1_clip.expand_directory_list(list(folders)):
        root = os.path.abspath(folder)
        whole = os.path.abspath(os.path.join(root, name))
        ending = next((ending for ending in _ENDINGS if os.path.isfile(whole + ending)), None)
        if ending is not None and whole.startswith(root + os.sep):
            yield os.path.relpath(whole + ending, root).replace(os.sep, "/"), Path(whole + ending)


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()
