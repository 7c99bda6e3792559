"""The command ``weights show|resave``: what a weight file holds, and older ones written again with a digest."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..weight_files import FileKind, Header


def add_parser(commands: Any) -> None:
    """Add ``weights`` to the command line."""
    parser = commands.add_parser(
        "weights", help="show a weight file, or give an older one a digest", description=__doc__
    )
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="check a file and print what it says about itself")
    show.add_argument("file", type=Path)
    show.set_defaults(run=_show)
    again = actions.add_parser("resave", help="write a file of an older version again, with a digest of its contents")
    again.add_argument("file", type=Path)
    again.add_argument("--out", type=Path, help="write there; default: in its place")
    again.set_defaults(run=_resave)


def _load(path: Path) -> Header:
    """The header of a file whose contents fit it.

    Raises:
        WeightFileError: if it is none of the pack's files, or damaged.
    """
    from ..card_fields import shown
    from ..redirector import text_weights as text
    from ..redirector import weights as hgr
    from ..testbed import model as testbed
    from ..training import lora
    from ..weight_files import FileKind, read_header, read_tensors

    checks: dict[str, tuple[FileKind, Callable[[Path], Any]]] = {
        hgr.KIND.format: (hgr.KIND, hgr.load_hgr),
        text.TEXT_KIND.format: (text.TEXT_KIND, text.load_text_redirector),
        lora.KIND.format: (lora.KIND, lora.load_lora),
        testbed.KIND.format: (testbed.KIND, lambda path: read_tensors(read_header(path, testbed.KIND))),
    }
    header = read_header(path, FileKind("weight file", "", "give a file that this pack wrote"))
    found = header.meta.get("format")
    if found not in checks:
        header.refuse(f"says its format is {shown(found)}", ", ".join(checks))
    kind, check = checks[found]
    check(path)
    return read_header(path, kind)


def _show(args: argparse.Namespace) -> int:
    from ..card_fields import parse_json, plain

    header = _load(args.file)
    numbers = sum(math.prod(shape) for _, shape in header.layout.values())
    print(f"{header.kind.label} {header.path}, version {header.meta.get('version', '1')}")
    print(f"holds: {len(header.layout)} tensors, {numbers:,} numbers, all finite")
    print(f"digest: {'matches the contents' if header.has_digest else 'none'}")
    for entry in ("network", "card", "training"):
        value = plain(parse_json(header.meta.get(entry, "{}")))
        for name, item in value.items() if isinstance(value, dict) else ():
            print(f"{entry}, {name}: {item}")
    return 0


def _resave(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..weight_files import SUFFIX, resave

    if args.out and args.out.suffix.lower() != SUFFIX:
        raise InputError("--out", f"it is {args.out}", f"a name that ends in {SUFFIX}")
    header = _load(args.file)
    if header.has_digest and args.out is None:
        print(f"{header.path} has a digest already, and it matches the contents; nothing was written")
        return 0
    resave(header, args.out)
    print(f"written: {args.out or header.path}, the same tensors and card, now with a digest")
    return 0
