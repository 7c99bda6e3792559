"""Weight files of the pack: one way to read, check and write them.

All are safetensors whose metadata says what they are. Since version 2 it also holds two SHA-256 digests, one of the
tensors and one of the metadata itself, so that a file is either as it was saved or refused. Files of version 1 have
none; they are read with a warning. Nothing that a header claims is believed before it was compared with the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .atomic import replace_file
from .card_fields import FieldError, Rule, parse_json, read_fields, shown
from .errors import InputError

VERSION = 2
SUFFIX = ".safetensors"
HEADER_DIGEST, TENSOR_DIGEST = "header_digest", "tensor_digest"
RESAVE = "python -m safeguidance weights resave"
HALF = "F16"
"""How safetensors calls half precision, in which weights are saved."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> dtype, as safetensors calls it, and shape."""

# what safetensors and torch raise for files that are damaged, too large or gone
_UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)
_WARNED: set[tuple[str, int]] = set()
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileKind:
    """One kind of weight file.

    Args:
        label: what messages call it, "HGR file".
        format: the metadata's ``format``; "" fits all.
        next_step: how to get a good one, as a clause in the imperative.
    """

    label: str
    format: str
    next_step: str


class WeightFileError(InputError):
    """A weight file that cannot be used, in one line.

    Args:
        file: kind and path.
        found: what is wrong with it, as a clause: "is damaged".
        allowed: what would be right.
        next_step: what to do, as a clause in the imperative.
    """

    def __init__(self, file: str, found: str, allowed: str, next_step: str) -> None:
        super().__init__(file, f"it {found}", allowed, next_step)


@dataclass(frozen=True)
class Header:
    """What a weight file says before its tensors are read.

    Args:
        path: the file.
        kind: what it was opened as.
        meta: its metadata.
        layout: its tensors.
    """

    path: Path
    kind: FileKind
    meta: Mapping[str, str]
    layout: Layout

    @property
    def has_digest(self) -> bool:
        """Whether its contents can be compared with what was saved."""
        return HEADER_DIGEST in self.meta or TENSOR_DIGEST in self.meta

    @property
    def without_digest(self) -> str:
        """What to know about a file that has none, as a clause."""
        return (
            "is an older file without a digest, so damage to it cannot be seen; where you trust it, write it again "
            f"with `{RESAVE} {self.path}`"
        )

    def refuse(self, found: str, allowed: str, next_step: str = "") -> NoReturn:
        """Say what is wrong with the file.

        Raises:
            WeightFileError: always.
        """
        _refuse(self.path, self.kind, found, allowed, next_step)

    def fields(self, entry: str, rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The fields of a metadata entry that holds a JSON object.

        Args:
            entry: name of the entry, such as "card".
            rules: field -> what it may hold.
            optional: fields that may be missing.

        Raises:
            WeightFileError: if the entry or a field is missing, unknown, of another type or out of its range.
        """
        if entry not in self.meta:
            self.refuse(f"has a damaged header: no {entry}", f"one with {entry}")
        try:
            return read_fields(parse_json(self.meta[entry]), rules, optional)
        except FieldError as error:
            self.refuse(f"has a damaged header: its {entry} {error.found}", error.allowed)

    def check_digest(self) -> None:
        """Compare the metadata with what was saved; after its fields, whose errors say more.

        Raises:
            WeightFileError: if it was changed.
        """
        if self.has_digest and self.meta[HEADER_DIGEST] != meta_digest(self.meta):
            self.refuse("has a damaged header: it was changed after it was saved", "the file as it was saved")


def _refuse(path: Path, kind: FileKind, found: str, allowed: str, next_step: str = "") -> NoReturn:
    raise WeightFileError(f"{kind.label} {path}", found, allowed, next_step or kind.next_step)


def read_header(path: Path, kind: FileKind) -> Header:
    """Metadata and layout of a weight file.

    Raises:
        WeightFileError: if the file is missing, is not safetensors, or is of another kind or version.
    """
    try:
        if not path.is_file():
            _refuse(path, kind, "does not exist", "a file that is there")
        if path.suffix.lower() != SUFFIX:
            _refuse(path, kind, f"is not a {SUFFIX} file", f"{SUFFIX}; pickled weights are never opened")
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
            # a mapping by name only: safe_open has no iterator
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            layout = {key: (str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    except WeightFileError:
        raise
    except _UNREADABLE as error:
        _refuse(
            path,
            kind,
            f"cannot be read as safetensors ({shown(error)})",
            "a whole safetensors file, not a truncated one or another format",
        )
    header = Header(path, kind, meta, layout)
    if kind.format and meta.get("format") != kind.format:
        header.refuse(f"says its format is {shown(meta.get('format'))}", repr(kind.format))
    version = meta.get("version", "1")
    if version not in ("1", str(VERSION)):
        header.refuse(f"has version {shown(version)}", f"1 to {VERSION}", "update the pack or retrain")
    for name in (HEADER_DIGEST, TENSOR_DIGEST) if version != "1" or header.has_digest else ():
        if name not in meta:
            header.refuse(f"has a damaged header: no {name}", f"one with {name}")
    return header


def read_tensors(header: Header, expected: Layout | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a weight file; they and its metadata are as they were saved.

    Args:
        header: of the file.
        expected: the layout it must have; compared before anything is read.

    Raises:
        WeightFileError: if the file holds other tensors, other values or metadata than those saved, or values that are
            not finite.
    """
    header.check_digest()
    if expected is not None and header.layout != expected:
        _refuse_layout(header, expected)
    try:
        with safe_open(header.path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in header.layout}
        found = tensor_digest(tensors) if header.has_digest else ""
        bad = _not_finite(tensors)
    except _UNREADABLE as error:
        header.refuse(f"cannot be read as safetensors ({shown(error)})", "a whole safetensors file")
    if header.has_digest and found != header.meta[TENSOR_DIGEST]:
        header.refuse("holds other values than those that were saved: it is damaged", "the file as it was saved")
    if bad:
        header.refuse(f"holds values that are not finite in {', '.join(map(shown, bad[:3]))}", "finite numbers")
    if not header.has_digest:
        _warn(header)
    return tensors


def _warn(header: Header) -> None:
    # once for a file, however often it is read
    known = (str(header.path.absolute()), header.path.stat().st_mtime_ns)
    if known not in _WARNED:
        _WARNED.add(known)
        _LOGGER.warning("SafeGuidance: %s %s %s", header.kind.label, header.path, header.without_digest)


def _refuse_layout(header: Header, expected: Layout) -> NoReturn:
    def described(layout: Layout, name: str) -> str:
        dtype, shape = layout[name]
        return f"{dtype} {shown(list(shape))}"

    texts = []
    for name in sorted(set(header.layout) | set(expected)):
        if name not in expected:
            texts.append(f"{shown(name)} is not part of it")
        elif name not in header.layout:
            texts.append(f"{name} is missing")
        elif header.layout[name] != expected[name]:
            texts.append(f"{name} is {described(header.layout, name)} instead of {described(expected, name)}")
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    header.refuse(
        f"does not hold the tensors its header describes: {', '.join(texts[:3])}{more}", "the tensors of that network"
    )


def layout_of(module: nn.Module) -> Layout:
    """The layout of a module's weights in half precision; the module may lie on the meta device."""
    return {key: (HALF, tuple(value.shape)) for key, value in module.state_dict().items()}


def half_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights in half precision, as they are saved."""
    return {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in module.state_dict().items()}


def save_tensors(path: Path, kind: FileKind, tensors: Mapping[str, torch.Tensor], entries: Mapping[str, str]) -> None:
    """Write a weight file with its digests; whole or not at all.

    Args:
        path: where to; an older file of that name is replaced.
        kind: of the file.
        tensors: contiguous, on the CPU.
        entries: metadata beside format, version and digests.

    Raises:
        WeightFileError: if a value is not finite; nothing is written then.
        OSError: if it cannot be written; an older file of that name is then as it was.
    """
    if bad := _not_finite(tensors):
        found = f"was not written: values in {', '.join(bad[:3])} are not finite or too large for half precision"
        _refuse(path, kind, found, "finite numbers below 65504", "train again with a lower learning rate")
    meta = {"format": kind.format, "version": str(VERSION), **entries, TENSOR_DIGEST: tensor_digest(tensors)}
    meta[HEADER_DIGEST] = meta_digest(meta)
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a full disk must not leave half a file, or take the old one away
        save_file(dict(tensors), part, meta)
        replace_file(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"{kind.label} {path} could not be written ({error}); free some space and save again") from error


def resave(header: Header, path: Path | None = None) -> None:
    """Write a file again with digests: the same tensors and metadata.

    Args:
        header: of a file that was checked by its own loader.
        path: where to, by default in its place.
    """
    own = ("format", "version", HEADER_DIGEST, TENSOR_DIGEST)
    entries = {key: value for key, value in header.meta.items() if key not in own}
    # copies, since the file that they are read from is replaced
    tensors = {key: value.clone() for key, value in read_tensors(header).items()}
    kind = FileKind(header.kind.label, header.meta["format"], header.kind.next_step)
    save_tensors(path or header.path, kind, tensors, entries)


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [key for key, value in tensors.items() if not bool(torch.isfinite(value.float()).all())]


def meta_digest(meta: Mapping[str, str]) -> str:
    """Digest of all metadata but the digest itself, which covers that of the tensors."""
    text = json.dumps({key: value for key, value in meta.items() if key != HEADER_DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names, dtypes, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        found.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode("ascii"))
        # bytes of any dtype, which numpy does not have for all of them
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
