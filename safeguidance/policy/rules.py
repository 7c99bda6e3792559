"""Parts of a policy for the whole server: who a user is, which nodes and files exist, what is written down."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InputError, check_choice, check_range

LONGEST_USER = 200
FAILURES = ("refuse", "continue")
LEAST_AUDIT_BYTES, MOST_AUDIT_BYTES = 65_536, 2**40
DIGEST = re.compile(r"[0-9a-f]{64}")
NOTHING: Mapping[str, Any] = MappingProxyType({})
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")


def frozen(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy that nobody can change."""
    return MappingProxyType(dict(values))


@dataclass(frozen=True)
class Identity:
    """Who a user is.

    Args:
        header: HTTP header in which a reverse proxy names the user; "" for none, then all get the strictest level.
        trusted_addresses: addresses or networks of that proxy. The header of any other sender is ignored.
        users: user -> level; anyone else gets the strictest.
        private: whether a user sees only own pictures, queue entries and history, settings and saved workflows.

    Raises:
        InputError: if a name or address is none, or parts do not go together.
    """

    header: str = ""
    trusted_addresses: tuple[str, ...] = ()
    users: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    private: bool = True

    def __post_init__(self) -> None:
        if self.header and not _HEADER.fullmatch(self.header):
            raise InputError("identity.header", f"it is {self.header[:100]!r}", "the name of an HTTP header")
        if self.header and not self.trusted_addresses:
            found = "it is empty, but a header names the user"
            raise InputError("identity.trusted_addresses", found, 'the address of the reverse proxy, as "127.0.0.1"')
        if not self.header and (self.users or self.trusted_addresses):
            found = "it is missing, but users or trusted addresses are named"
            raise InputError("identity.header", found, "the header that the reverse proxy sets")
        for user in self.users:
            if user != user.strip() or not 0 < len(user) <= LONGEST_USER or not user.isprintable():
                allowed = f"1 to {LONGEST_USER} characters on one line, no spaces around them"
                raise InputError("identity.users", f"a user is named {user[:80]!r}", allowed)
        for text in self.trusted_addresses:
            network(text)
        object.__setattr__(self, "users", frozen(self.users))


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or network of a trusted sender.

    Raises:
        InputError: if it is none, or holds every address there is.
    """
    name, allowed = "identity.trusted_addresses", 'addresses or networks, as "127.0.0.1" or "10.0.0.0/28"'
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(name, f"{text[:100]!r} is no address or network", allowed) from error
    if found.prefixlen == 0:
        raise InputError(name, f"{text!r} is every address, so anyone could name any user", allowed)
    return found


@dataclass(frozen=True)
class NodeRules:
    """Which node classes exist.

    Args:
        core: those of the host, without API nodes.
        own: those of this pack.
        api_nodes: those of the host that send to a paid service.
        add: further ones: class names, or ``package:NAME`` for all of a folder in ``custom_nodes``.
        remove: class names that are taken away again, after everything else.
    """

    core: bool = True
    own: bool = True
    api_nodes: bool = False
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelRules:
    """Which checkpoints, LoRAs, embeddings and other model files may be used.

    Args:
        any: whether every file may; then ``allow`` is empty.
        allow: names as the loaders list them, or ``sha256:`` and the digest of the file.

    Raises:
        InputError: if a digest is none, or files are named where all are allowed.
    """

    any: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.any and self.allow:
            raise InputError("models.allow", "it names files, but any = true allows all", "one of the two")
        for entry in self.allow:
            if entry.startswith("sha256:") and not DIGEST.fullmatch(entry.removeprefix("sha256:")):
                raise InputError("models.allow", f"it holds {entry[:100]!r}", "sha256: and 64 digits 0-9 and a-f")

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 digests of files that may be used whatever their name."""
        return frozenset(entry.removeprefix("sha256:") for entry in self.allow if entry.startswith("sha256:"))

    def allows_name(self, name: str) -> bool:
        """Whether a file may be used by its name alone, as a loader lists it."""
        return self.any or (name.replace("\\", "/") in self.allow and not name.startswith("sha256:"))


@dataclass(frozen=True)
class AuditRules:
    """What is written down.

    Args:
        enabled: whether anything is.
        path: of the file.
        text: whether prompts are kept as text; else only their digest.
        max_bytes: size from which a new file is begun; the old one keeps its place in the chain.
        on_failure: refuse: nothing is drawn while nothing can be written. continue: it is drawn all the same.
    """

    enabled: bool = True
    path: Path = Path("safeguidance_audit.jsonl")
    text: bool = False
    max_bytes: int = 10_000_000
    on_failure: str = "refuse"

    def __post_init__(self) -> None:
        check_range("audit.max_bytes", self.max_bytes, LEAST_AUDIT_BYTES, MOST_AUDIT_BYTES)
        check_choice("audit.on_failure", self.on_failure, FAILURES)


@dataclass(frozen=True)
class EvidenceRules:
    """What a saved picture says about itself.

    Args:
        metadata: policy digest and decision, beside the workflow.
        iptc: the IPTC field *Digital Source Type*: generated by AI.
        c2pa: a signed C2PA manifest; needs the extra ``evidence``, a certificate and its key.
        certificate: PEM file with the certificate chain.
        private_key: PEM file with its private key.

    Raises:
        InputError: if certificate and key are missing where they are needed, or there where they are not.
    """

    metadata: bool = True
    iptc: bool = True
    c2pa: bool = False
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("certificate", self.certificate), ("private_key", self.private_key)):
            if self.c2pa and value is None:
                raise InputError(f"evidence.{name}", "it is missing, but c2pa = true", "the path of a PEM file")
            if not self.c2pa and value is not None:
                raise InputError(f"evidence.{name}", "it is given, but c2pa is not true", "c2pa = true as well")
