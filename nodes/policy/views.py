"""Routes that show, bring in or change what belongs to somebody: each is answered for the caller alone."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .loaded import MESSAGE, OTHERS
from .refusal import Refused
from .state import Armed, Caller

_CLOSED = "This address is not allowed on this server."


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        web: the host's ``aiohttp.web``.
        server: the armed server.
        caller: who asks.
        request: of the host.
        handler: what the host answers with.
    """

    web: Any
    server: Armed
    caller: Caller
    request: Any
    handler: Callable[[Any], Awaitable[Any]]

    async def go_on(self) -> Any:
        """The host's answer."""
        return await self.handler(self.request)

    async def body(self) -> dict[str, Any]:
        """The JSON table that was sent; an empty one where there is none."""
        try:
            found = await self.request.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return dict(found) if isinstance(found, Mapping) else {}

    def own(self, prompt_id: object) -> bool:
        """Whether a job is the caller's, or one that they may see."""
        job = self.server.known(prompt_id)
        return self.server.may_see(self.caller, None if job is None else job.caller.user)

    async def only(self, keep: Callable[[Any], Any]) -> Any:
        """The host's answer with what is the caller's.

        Args:
            keep: gives what remains of the JSON value.
        """
        found = await self.go_on()
        if found.status != 200:
            return found
        return self.web.json_response(keep(json.loads(found.text)))


def real_path(filename: str, kind: str, subfolder: str) -> Path | None:
    """The file that the host's routes take for these names; None where there is no such folder."""
    import folder_paths

    name, folder = folder_paths.annotated_filepath(filename)
    folder = folder or folder_paths.get_directory_by_type(kind)
    if not name or folder is None:
        return None
    return Path(folder, subfolder, os.path.basename(name)).resolve()


def may_view(asked: Asked, filename: str, kind: str, subfolder: str) -> bool:
    """Whether the caller may see a file of the input, output or temp folder."""
    import folder_paths

    path = real_path(filename, kind, subfolder)
    if path is None:
        return True  # the host answers that there is none
    owner = asked.server.owner(path)
    if owner is None and path.is_relative_to(Path(folder_paths.get_input_directory()).resolve()):
        return True  # put there by who runs the server
    return asked.server.may_see(asked.caller, owner)


async def view(asked: Asked) -> Any:
    """A picture; of all others nobody learns whether there is one.

    Raises:
        Refused: if it is not the caller's.
    """
    query = asked.request.rel_url.query
    name = query.get("filename", "")
    if name.startswith("blake3:") and not asked.caller.level.supervisor:
        raise Refused(OTHERS)
    if name and not may_view(asked, name, query.get("type", "output"), query.get("subfolder", "")):
        raise Refused(OTHERS)
    return await asked.go_on()


async def upload(asked: Asked) -> Any:
    """A picture from outside.

    Raises:
        Refused: if the policy takes none, or it would stand in place of somebody else's.
    """
    if asked.server.policy.loaded == "refuse":
        raise Refused(MESSAGE)
    post = await asked.request.post()
    kind = str(post.get("type") or "input")
    if kind != "input" and not asked.caller.level.supervisor:
        raise Refused("Pictures can be put into the input folder only.")
    subfolder, image = str(post.get("subfolder", "")), post.get("image")
    path = real_path(str(getattr(image, "filename", "") or ""), kind, subfolder)
    if path is not None and asked.server.owner(path) not in (None, asked.caller.user) and "overwrite" in post:
        raise Refused(OTHERS)
    if "original_ref" in post:
        named = json.loads(str(post["original_ref"]))
        name, place = str(named.get("filename") or ""), str(named.get("type") or "output")
        if not may_view(asked, name, place, str(named.get("subfolder") or "")):
            raise Refused(OTHERS)
    answer = await asked.go_on()
    if answer.status == 200:
        said = json.loads(answer.text)
        made = real_path(str(said["name"]), str(said["type"]), str(said["subfolder"]))
        if made is not None and asked.server.owner(made) is None:
            asked.server.owns(made, asked.caller.user)
    return answer


async def history(asked: Asked) -> Any:
    """What was drawn for the caller."""
    return await asked.only(lambda found: {key: value for key, value in found.items() if asked.own(key)})


async def queue(asked: Asked) -> Any:
    """What waits and runs for the caller."""

    def keep(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [item for item in items if asked.own(item[1])] for name, items in found.items()}

    return await asked.only(keep)


async def jobs(asked: Asked) -> Any:
    """The caller's jobs."""

    def keep(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "jobs": [job for job in found.get("jobs", []) if asked.own(job.get("id"))]}

    return await asked.only(keep)


async def one_job(asked: Asked) -> Any:
    """A job of the caller.

    Raises:
        Refused: if it is not theirs.
    """
    if not asked.own(asked.request.match_info.get("job_id")):
        raise Refused("This job belongs to somebody else.")
    return await asked.go_on()


async def change_queue(asked: Asked) -> Any:
    """Take the caller's own jobs out of the queue."""
    body, waiting = await asked.body(), _queue()
    wanted = _ids(body.get("delete"))
    if body.get("clear"):
        wanted += [str(item[1]) for item in waiting.get_current_queue_volatile()[1]]
    for prompt_id in filter(asked.own, wanted):
        if waiting.delete_queue_item(lambda item, prompt_id=prompt_id: item[1] == prompt_id):
            asked.server.dropped(prompt_id)
    return asked.web.Response(status=200)


async def change_history(asked: Asked) -> Any:
    """Forget the caller's own jobs."""
    body, kept = await asked.body(), _queue()
    wanted = _ids(body.get("delete"))
    if body.get("clear"):
        wanted += list(kept.get_history())
    for prompt_id in filter(asked.own, wanted):
        kept.delete_history_item(prompt_id)
    return asked.web.Response(status=200)


async def interrupt(asked: Asked) -> Any:
    """Stop the caller's own job, if it is the one that runs."""
    wanted = (await asked.body()).get("prompt_id")
    _stop(asked, lambda prompt_id: not wanted or prompt_id == wanted)
    return asked.web.Response(status=200)


async def cancel(asked: Asked) -> Any:
    """Stop or take out the caller's own jobs."""
    given = asked.request.match_info.get("job_id")
    wanted = set(_ids((await asked.body()).get("job_ids")) if given is None else [str(given)])
    done = _stop(asked, lambda prompt_id: prompt_id in wanted)
    for prompt_id in filter(asked.own, wanted):
        if _queue().delete_queue_item(lambda item, prompt_id=prompt_id: item[1] == prompt_id):
            asked.server.dropped(prompt_id)
            done = True
    return asked.web.json_response({"cancelled": done})


async def websocket(asked: Asked) -> Any:
    """The messages of a client id, which belongs to one user at a time.

    Raises:
        Refused: if it is another user's.
    """
    client = asked.request.rel_url.query.get("clientId", "")
    if not client:
        return await asked.go_on()
    if not asked.server.connect(client, asked.caller.user):
        raise Refused("This page belongs to another user. Close it and open a new one.")
    try:
        return await asked.go_on()
    finally:
        asked.server.disconnect(client)


async def managed(asked: Asked) -> Any:
    """What concerns everybody.

    Raises:
        Refused: for all but supervisors, where users can be told apart.
    """
    if not asked.server.may_manage(asked.caller):
        raise Refused(_CLOSED)
    return await asked.go_on()


async def supervised(asked: Asked) -> Any:
    """What shows everybody's pictures by routes of its own.

    Raises:
        Refused: for all but supervisors.
    """
    if not asked.caller.level.supervisor:
        raise Refused(_CLOSED)
    return await asked.go_on()


def _queue() -> Any:
    import server

    return server.PromptServer.instance.prompt_queue


def _ids(found: object) -> list[str]:
    return [str(one) for one in found] if isinstance(found, Iterable) and not isinstance(found, (str, Mapping)) else []


def _stop(asked: Asked, wanted: Callable[[str], bool]) -> bool:
    """Interrupt the running job, if it is wanted and the caller's; nothing can start in between."""
    import nodes

    waiting = _queue()
    with waiting.mutex:
        for item in waiting.currently_running.values():
            if wanted(item[1]) and asked.own(item[1]):
                nodes.interrupt_processing()
                return True
    return False


Rule = Callable[[Asked], Awaitable[Any]]
RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/view"): view,
    ("POST", "/upload/image"): upload,
    ("POST", "/upload/mask"): upload,
    ("GET", "/history"): history,
    ("GET", "/history/{prompt_id}"): history,
    ("POST", "/history"): change_history,
    ("GET", "/queue"): queue,
    ("POST", "/queue"): change_queue,
    ("POST", "/interrupt"): interrupt,
    ("POST", "/free"): managed,
    ("POST", "/users"): managed,
    ("GET", "/jobs"): jobs,
    ("GET", "/jobs/{job_id}"): one_job,
    ("POST", "/jobs/{job_id}/cancel"): cancel,
    ("POST", "/jobs/cancel"): cancel,
    ("GET", "/ws"): websocket,
}
"""By method and route."""
BEGINNINGS: dict[str, Rule] = {"/internal": managed, "/api/assets": supervised}
"""By how a route begins."""
