"""Arming: what is set up while the host loads its packs, and what must be in place before the server listens.

Whatever goes wrong ends the process. A server that was meant to be armed and is not must not run.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ...safeguidance.errors import InputError
from ...safeguidance.policy import evidence
from ...safeguidance.policy.load import load_armed
from ...safeguidance.policy.ready import announce
from .refusal import BROKEN, Refused
from .requests import ROUTE, Desk

_LOGGER = logging.getLogger(__name__)


def arm() -> None:
    """Take the place before all requests, and have the gates put in place when every pack is loaded.

    Raises:
        SystemExit: if it cannot be done. The host goes on after any other error of a pack.
    """
    try:
        import server

        host = server.PromptServer.instance
        desk = Desk(server.web)
        host.app.middlewares.insert(0, desk.middleware())
        host.routes.get(ROUTE)(desk.status)

        async def start(_app: Any) -> None:
            await _start(host, desk)

        host.app.on_startup.append(start)
    except Exception as error:
        raise SystemExit(f"SafeGuidance: the server was not armed, so it does not start: {error}") from error


async def _start(host: Any, desk: Desk) -> None:
    """Put every gate in place; the last thing before the server listens."""
    try:
        _gates(host, desk)
    except Exception as error:
        why = error.reason if isinstance(error, Refused) else str(error)
        _LOGGER.critical("SafeGuidance: the server was not armed, so it does not start: %s", why)
        raise SystemExit(1) from error


def _gates(host: Any, desk: Desk) -> None:
    from comfy.cli_args import args

    import nodes

    from . import decoding, entry, loaded, prediction, previews, sampling, userdata
    from .guards import check_level
    from .models import Models, guard_loading
    from .prune import OWN, origin, prune
    from .record import Record
    from .state import Armed
    from .texts import note_encoders

    policy = load_armed(os.environ)
    if policy is None:
        raise Refused(BROKEN, "the policy is gone from the environment")
    if getattr(args, "enable_manager", False):
        raise InputError("--enable-manager", "it lets users install code", "an armed server without it")
    evidence.check(policy.evidence)
    armed = Armed(policy)
    for level in policy.levels.values():
        check_level(level)
    classes = list(nodes.NODE_CLASS_MAPPINGS.values())
    gone = prune(policy.nodes, nodes.NODE_CLASS_MAPPINGS)
    models = Models(armed)
    record = Record(armed, models)
    pictures = decoding.Pictures(armed, record)
    guard_loading(armed, models)
    note_encoders(armed)
    sampling.gate(armed, record)
    prediction.gate(armed)
    decoding.gate(armed, pictures)
    decoding.gate_outputs(armed, pictures, record)
    loaded.gate(armed)
    previews.gate(armed, pictures)
    userdata.gate(armed)
    entry.gate(armed, models, record)
    armed.audit.check()
    desk.open(armed, models, record)
    _LOGGER.info(
        "SafeGuidance: armed with the policy %s (%s); %d node classes taken out, %d functions replaced",
        policy.name,
        policy.digest[:12],
        len(gone),
        len(armed.replaced.names),
    )
    others = sorted({folder for _, folder in map(origin, classes) if folder and folder != OWN.name})
    unnamed = [name for name in others if f"package:{name}" not in policy.nodes.add]
    if unnamed:
        _LOGGER.warning(
            "SafeGuidance: packs that the policy does not name were loaded all the same, and their code ran: %s. Start "
            "with --disable-all-custom-nodes --whitelist-custom-nodes and the packs that you trust",
            ", ".join(unnamed),
        )
    announce(policy, os.environ)
