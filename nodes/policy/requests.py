"""Every request of an armed server: who asks is settled first, then whether they may ask for that."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ...safeguidance.policy.identity import level_of
from .entry import check_graph
from .models import Models
from .prune import OWN
from .record import Record
from .refusal import BROKEN, Refused, as_json
from .state import CALLER, Armed, Caller, Job
from .views import BEGINNINGS, RULES, Asked

_LOGGER = logging.getLogger(__name__)
TOLD = "safeguidance.refused"
"""Kind of the message to the page whose workflow was refused before it was queued."""
Handler = Callable[[Any], Awaitable[Any]]
ROUTE = "/safeguidance/policy"
"""Says that the server is armed, and with which policy."""


def caller_of(server: Armed, request: Any) -> Caller:
    """Who makes a request: by the address of the connection and the header of the proxy, nothing else."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    address = str(peer[0]) if isinstance(peer, (tuple, list)) and peer else None
    user, level = level_of(server.policy, request.headers, address)
    return Caller(user, server.policy.levels[level])


class Desk:
    """Answers requests. Nobody gets anything before it is open.

    Args:
        web: the host's ``aiohttp.web``.
    """

    def __init__(self, web: Any) -> None:
        self.web = web
        self._server: Armed | None = None
        self._models: Models | None = None
        self._record: Record | None = None

    def open(self, server: Armed, models: Models, record: Record) -> None:
        """All gates stand."""
        self._models, self._record, self._server = models, record, server

    def middleware(self) -> Any:
        """The middleware that stands before all others."""
        web = self.web

        async def policy(request: Any, handler: Handler) -> Any:
            if self._server is None:
                return web.json_response(as_json(Refused("The server is still starting. Try again soon.")), status=503)
            caller = self._server.nobody
            mark = CALLER.set(caller)
            try:
                caller = caller_of(self._server, request)
                CALLER.set(caller)
                return await self._answer(self._server, caller, request, handler)
            except Refused as refused:
                return web.json_response(as_json(refused), status=403)
            except (web.HTTPException, ConnectionError):
                raise
            except Exception:
                _LOGGER.exception("SafeGuidance: a request was refused")
                return web.json_response(as_json(Refused(BROKEN)), status=403)
            finally:
                CALLER.reset(mark)

        return web.middleware(policy)

    async def status(self, _request: Any) -> Any:
        """Answer of the health route.

        Raises:
            Refused: if nothing is armed yet.
        """
        caller, server = CALLER.get(), self._server
        if caller is None or server is None:
            raise Refused(BROKEN, "not armed")
        said = {"armed": True, "digest": server.policy.digest, "name": server.policy.name}
        return self.web.json_response({**said, "level": caller.level.name, "user": caller.user})

    async def _answer(self, server: Armed, caller: Caller, request: Any, handler: Handler) -> Any:
        """What a request is answered.

        Raises:
            Refused: if it is not allowed.
        """
        place = route_of(request)
        _check_origin(server, request, request.match_info.handler)
        if request.method == "OPTIONS":
            return await handler(request)
        if place == "/prompt" and request.method == "POST":
            refused = await self._look_at_graph(server, caller, request)
            return refused if refused is not None else await handler(request)
        method = "GET" if request.method == "HEAD" else request.method
        rule = RULES.get((method, place))
        if rule is None:
            rule = next((found for begin, found in BEGINNINGS.items() if place.startswith(begin)), None)
        if rule is None:
            return await handler(request)
        return await rule(Asked(self.web, server, caller, request, handler))

    async def _look_at_graph(self, server: Armed, caller: Caller, request: Any) -> Any:
        """The answer to a graph that is not allowed, before the host validates it; None where it may go on.

        What is queued in the end is looked at again: other packs may change it on the way.

        Raises:
            Refused: if there is no graph to look at.
        """
        assert self._models is not None
        assert self._record is not None
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            body = None
        if not isinstance(body, dict):
            raise Refused("This is no workflow.", "a body that is no JSON table")
        prompt = body.get("prompt")
        try:
            if prompt is not None:
                check_graph(server, self._models, Job("", caller, active=False), prompt)
        except Refused as refused:
            self._record.request(caller, refused)
            _tell(server, caller, body.get("client_id"), refused)
            return self.web.json_response(as_json(refused, prompt), status=403)
        return None


def _tell(server: Armed, caller: Caller, client_id: object, refused: Refused) -> None:
    """Send the sentence to the page that asked: the editor marks the node, and hides what the answer says."""
    if isinstance(client_id, str) and client_id and server.may_send_to(client_id, caller.user):
        from server import PromptServer

        # never without a client: the host would send it to everybody
        PromptServer.instance.send_sync(TOLD, {"message": refused.message, "node": refused.node}, client_id)


def route_of(request: Any) -> str:
    """The route that the host resolved a request to, without the prefix that every route exists with as well."""
    resource = getattr(request.match_info.route, "resource", None)
    place = str(getattr(resource, "canonical", ""))
    while place.startswith("/api/") and not place.startswith("/api/assets"):
        place = place.removeprefix("/api")
    return place


def _check_origin(server: Armed, request: Any, handler: Any) -> None:
    """Refuse routes of packs that the policy does not name: nobody knows what they give out.

    Raises:
        Refused: naming the pack.
    """
    import folder_paths

    found = handler
    while hasattr(found, "func") or hasattr(found, "__wrapped__"):
        found = getattr(found, "func", None) or found.__wrapped__
    code = getattr(getattr(found, "__func__", found), "__code__", None)
    if code is None:
        code = getattr(type(found).__call__, "__code__", None)
    info = request.match_info.route.resource.get_info() if request.match_info.route.resource is not None else {}
    folder = info.get("directory")
    if folder is not None and _holds_pictures(Path(folder)):
        raise Refused("This address is not allowed on this server.", f"a static route to {folder}")
    file = None if code is None else Path(code.co_filename).resolve()
    if file is None or file.is_relative_to(OWN):
        return
    for root in folder_paths.get_folder_paths("custom_nodes"):
        place = Path(root).resolve()
        if file.is_relative_to(place):
            name = file.relative_to(place).parts[0].removesuffix(".py")
            if f"package:{name}" not in server.policy.nodes.add:
                raise Refused("This address is not allowed on this server.", f"a route of the pack {name}")


def _holds_pictures(folder: Path) -> bool:
    import folder_paths

    for name in ("output", "temp", "input"):
        place = folder_paths.get_directory_by_type(name)
        if place is not None and Path(place).resolve().is_relative_to(folder.resolve()):
            return True
        if place is not None and folder.resolve().is_relative_to(Path(place).resolve()):
            return True
    return False
