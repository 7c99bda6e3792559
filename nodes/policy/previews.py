"""Pictures that are sent while others form: none, or those that the judge of the level lets pass."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .decoding import Pictures
from .state import Armed, Job

_LOGGER = logging.getLogger(__name__)


def gate(armed: Armed, pictures: Pictures) -> None:
    """Put the gate where the host sends previews, whoever made them."""
    import server
    from protocol import BinaryEventTypes

    sent = {int(BinaryEventTypes.PREVIEW_IMAGE), int(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE)}
    sent.add(int(getattr(BinaryEventTypes, "PREVIEW_IMAGE_WITH_METADATA", BinaryEventTypes.PREVIEW_IMAGE)))
    if armed.policy.previews == "off":
        _stop(armed, sent, server.PromptServer)
    elif armed.policy.previews == "judged":
        _judge(armed, pictures, sent, server.PromptServer)


def _stop(armed: Armed, sent: set[int], host: Any) -> None:
    import latent_preview

    def makes(_before: Any) -> Any:
        def get_previewer(*_args: Any, **_kwargs: Any) -> None:
            return None

        return get_previewer

    def sends(before: Any) -> Any:
        async def send_bytes(self: Any, event: Any, *args: Any, **kwargs: Any) -> None:
            if int(event) not in sent:
                await before(self, event, *args, **kwargs)

        return send_bytes

    armed.replaced.put(latent_preview, "get_previewer", makes)
    armed.replaced.put(host, "send_bytes", sends)


def _judge(armed: Armed, pictures: Pictures, sent: set[int], host: Any) -> None:
    def sends(before: Any) -> Any:
        def send_sync(self: Any, event: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(event, int) and int(event) in sent and not _passes(armed, pictures, data):
                return None
            return before(self, event, data, *args, **kwargs)

        return send_sync

    armed.replaced.put(host, "send_sync", sends)


def _passes(armed: Armed, pictures: Pictures, data: Any) -> bool:
    """Whether a preview may be sent; anything that goes wrong says no."""
    import numpy

    try:
        if len(data) == 2 and isinstance(data[1], dict):  # with metadata
            job, data = armed.job_of(data[1].get("prompt_id")), data[0]
        else:
            job = armed.job()
        values = numpy.asarray(data[1].convert("RGB")).astype("float32") / 255
        return pictures.looks_harmless(torch.from_numpy(values).unsqueeze(0), _unnamed(job))
    except Exception:
        _LOGGER.exception("SafeGuidance: a preview could not be judged and was not sent")
        return False


def _unnamed(job: Job) -> Job:
    """The same job for a look that decides nothing about it."""
    return Job(job.prompt_id, job.caller, active=False)
