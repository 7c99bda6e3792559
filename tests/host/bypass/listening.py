"""What a websocket client of a server gets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from tests.host.bypass.armed import Armed

_PREVIEWS = (1, 2, 4)


async def listen(
    armed: Armed, user: str, client: str, during: Callable[[], Any], headers: Mapping[str, str] | None = None
) -> list[Any]:
    """Messages that a client gets while something is done: texts as tables, binary ones as numbers of their kind."""
    found = []
    head = {"X-Remote-User": user, **(headers or {})} if user else {}
    address = f"{armed.url}/ws" + (f"?clientId={client}" if client else "")
    async with aiohttp.ClientSession() as session, session.ws_connect(address, headers=head) as socket:
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})

        async def read():
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    found.append(struct.unpack(">I", message.data[:4])[0])
                elif message.type == aiohttp.WSMsgType.TEXT:
                    found.append(message.json())

        reading = asyncio.create_task(read())
        await asyncio.to_thread(during)
        await asyncio.sleep(0.2)
        reading.cancel()
    return found


def previews(found: list[Any]) -> int:
    """How many of these messages are pictures."""
    return sum(entry in _PREVIEWS for entry in found if isinstance(entry, int))
