"""The way into the queue: who asks, what their graph may hold, and what the executor may reuse for whom."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping
from typing import Any

from .decoding import files_in, take
from .loaded import check_node
from .models import Models
from .prune import class_of
from .record import Record
from .refusal import BROKEN, Refused, as_json
from .state import CALLER, Armed, Caller, Job

SHARED = frozenset(
    {
        *("BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"),
        *("CLIP", "CLIP_VISION", "CONTROL_NET", "GLIGEN", "MODEL", "STYLE_MODEL", "UPSCALE_MODEL", "VAE"),
        *("CONDITIONING", "GUIDER", "HOOKS", "HOOK_KEYFRAMES", "NOISE", "SAMPLER", "SIGMAS"),
    }
)
"""Types of results that are the same for every level; all others are computed again for another level."""
_LOGGER = logging.getLogger(__name__)
_LONGEST_ID = 100


def gate(armed: Armed, models: Models, record: Record) -> None:
    """Put the checks at the queue's entry and into the executor's cache."""
    import execution

    def enters(before: Any) -> Any:
        def put(self: Any, item: Any) -> Any:
            import server

            caller, prompt = CALLER.get() or armed.nobody, item[2]
            try:
                admitted = _admit(armed, models, self.server, caller, item)
                found = before(self, admitted)
            except Refused as refused:
                record.request(caller, refused)
                body = server.web.json_response(as_json(refused, prompt)).text
                raise server.web.HTTPForbidden(text=body, content_type="application/json") from refused
            return found

        return put

    def ends(before: Any) -> Any:
        def task_done(self: Any, item_id: Any, history_result: Any, *args: Any, **kwargs: Any) -> Any:
            item = self.currently_running.get(item_id)
            job = armed.known(item[1]) if item else None
            if job is not None:
                _take_late(armed, record, job, history_result)
                armed.dropped(job.prompt_id)
            return before(self, item_id, history_result, *args, **kwargs)

        return task_done

    def signs(before: Any) -> Any:
        async def get(self: Any, node_id: Any) -> Any:
            found = await before(self, node_id)
            return [found, *_owner_of_result(armed, self, node_id)]

        return get

    armed.replaced.put(execution.PromptQueue, "put", enters)
    armed.replaced.put(execution.PromptQueue, "task_done", ends)
    armed.replaced.put(execution.IsChangedCache, "get", signs)


def _take_late(armed: Armed, record: Record, job: Job, result: Any) -> None:
    """Note files of nodes that ended later than they were called; those of the others are known."""
    for shown in (result or {}).get("outputs", {}).values():
        for path in files_in(shown, job.began):
            if armed.owner(path) is None:
                try:
                    take(armed, record, job, path)
                except Refused as refused:
                    _LOGGER.error("SafeGuidance: %s was taken away: %s", path.name, refused.reason)


def _owner_of_result(armed: Armed, changed: Any, node_id: Any) -> list[str]:
    """For whom a node's cached result is: all, those of a level, or one user (files that are shown)."""
    import nodes

    job = armed.job_of(changed.prompt_id)
    node_class = nodes.NODE_CLASS_MAPPINGS[changed.dynprompt.get_node(node_id)["class_type"]]
    shows = getattr(node_class, "OUTPUT_NODE", False) or getattr(node_class, "HAS_INTERMEDIATE_OUTPUT", False)
    if shows:
        # a notice picture belongs to the prompt that it stands for
        return [job.level.name, job.caller.user]
    return [] if set(map(str, node_class.RETURN_TYPES)) <= SHARED else [job.level.name]


def _admit(armed: Armed, models: Models, host: Any, caller: Caller, item: Any) -> Any:
    """What enters the queue in place of an item.

    Raises:
        Refused: if the policy does not allow it.
    """
    armed.replaced.check()
    number, prompt_id, prompt, extra, *rest = item
    if not isinstance(prompt_id, str) or not 0 < len(prompt_id) <= _LONGEST_ID or not prompt_id.isprintable():
        raise Refused("The id of this prompt cannot be used. Send it without one.", "an odd prompt id")
    if not armed.may_manage(caller) or not math.isfinite(number):
        number = host.number
    extra = dict(extra) if isinstance(extra, Mapping) else {}
    client = extra.get("client_id")
    if not isinstance(client, str) or not client or len(client) > _LONGEST_ID:
        # without one the host sends the messages of this prompt to everybody
        client = f"safeguidance-{uuid.uuid4().hex}"
    if not armed.may_send_to(client, caller.user):
        raise Refused("Reload the page and try again.", "the client id of another user")
    extra["client_id"] = client
    if armed.policy.previews == "off":
        extra.pop("preview_method", None)
    job = Job(prompt_id, caller, client)
    check_graph(armed, models, job, prompt)
    armed.begin(job)
    return (number, prompt_id, prompt, extra, *rest)


def check_graph(armed: Armed, models: Models, job: Job, prompt: Any) -> None:
    """Look at every node of a graph.

    Raises:
        Refused: naming the first node that the policy does not allow.
    """
    import nodes

    if not isinstance(prompt, Mapping):
        raise Refused("This is no workflow.", "a prompt that is no table")
    for name, entry in prompt.items():
        try:
            _check_node(armed, models, job, str(name), entry, nodes.NODE_CLASS_MAPPINGS)
        except Refused:
            raise
        except Exception as error:
            raise Refused(BROKEN, f"node {name}: {type(error).__name__}: {error}", str(name)) from error


def _check_node(armed: Armed, models: Models, job: Job, name: str, entry: Any, table: Mapping[str, Any]) -> None:
    kind = entry["class_type"]
    node_class = class_of(table, kind)
    if node_class is None:
        raise Refused(f"The node {str(kind)[:100]} is not allowed on this server.", f"node class {kind}", name)
    check_node(armed, node_class, name)
    models.check_named(job, _values(entry.get("inputs", {})), name)


def _values(inputs: Any) -> list[Any]:
    """All values of a node's inputs, those inside tables and lists too."""
    found, open_ = [], [inputs]
    while open_:
        value = open_.pop()
        if isinstance(value, Mapping):
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
        else:
            found.append(value)
    return found
