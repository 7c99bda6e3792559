"""Who asks, and at which level: a header counts only where the proxy that sets it is the sender."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from .rules import LONGEST_USER, Identity, network
from .schema import Policy

NOBODY = ""
"""User of a request that names none, or names one that cannot be believed."""


def level_of(
    policy: Policy, headers: Mapping[str, str] | Iterable[tuple[str, str]], remote_address: str | None
) -> tuple[str, str]:
    """User and level of a request.

    Args:
        policy: of the server.
        headers: of the request; a mapping whose ``items`` name a repeated header repeatedly, or pairs.
        remote_address: address of the sender of the connection, not what any header says it is; None if not known.

    Returns:
        The user, "" for nobody in particular, and the name of the level; the strictest for everyone who is not named.
    """
    user = user_of(policy.identity, headers, remote_address)
    return user, policy.identity.users.get(user, policy.strictest) if user else policy.strictest


def user_of(
    identity: Identity, headers: Mapping[str, str] | Iterable[tuple[str, str]], remote_address: str | None
) -> str:
    """The user that a trusted proxy names, "" for none.

    A header that is there twice names nobody: proxies differ in which of the two they mean.
    """
    if not identity.header or not trusted(identity, remote_address):
        return NOBODY
    pairs = headers.items() if isinstance(headers, Mapping) or hasattr(headers, "items") else headers
    # proxies and servers below them may take _ for -, so a client's X_Remote_User counts as a second header
    wanted = identity.header.lower().replace("_", "-")
    found = [value for name, value in pairs if str(name).lower().replace("_", "-") == wanted]
    if len(found) != 1:
        return NOBODY
    user = found[0].strip()
    return user if 0 < len(user) <= LONGEST_USER and user.isprintable() else NOBODY


def trusted(identity: Identity, remote_address: str | None) -> bool:
    """Whether an address is one of the proxy's."""
    try:
        found = ipaddress.ip_address((remote_address or "").partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    address = mapped or found
    return any(address in network(text) for text in identity.trusted_addresses)
