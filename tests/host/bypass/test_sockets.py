"""Websockets of an armed server: no previews, and nobody gets the messages of another."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.host.bypass.armed import CUP
from tests.host.bypass.graphs import node, plain, seeded
from tests.host.bypass.listening import listen, previews

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]


def test_no_preview_is_sent_whatever_a_prompt_asks_for(armed):
    graph = seeded(plain(CUP), 700)

    def during():
        more = {"extra_data": {"preview_method": "latent2rgb"}}
        assert armed.draw(graph, "ann", **more).status == "ok"

    found = asyncio.run(listen(armed, "ann", "client-ann", during))
    assert [entry for entry in found if isinstance(entry, dict) and entry["type"] == "executed"], found
    assert not previews(found)


def test_a_client_id_belongs_to_one_user_at_a_time(armed):
    async def both():
        async with aiohttp.ClientSession() as session:
            head = {"X-Remote-User": "ann"}
            async with session.ws_connect(f"{armed.url}/ws?clientId=shared", headers=head):
                for prefix in ("", "/api"):
                    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                        other = {"X-Remote-User": "bob"}
                        await session.ws_connect(f"{armed.url}{prefix}/ws?clientId=shared", headers=other)
                refused = await asyncio.to_thread(
                    lambda: armed.queue(seeded(plain(CUP), 701), "bob", client_id="shared")
                )
                return refused

    refused = asyncio.run(both())
    assert refused.status == "refused"
    assert refused.message == "Reload the page and try again."


def test_messages_of_a_prompt_without_a_client_id_reach_nobody(armed):
    def during():
        done = armed.queue(seeded(plain(CUP), 702), "ann", client_id=None)
        armed.wait(done, "ann")

    found = asyncio.run(listen(armed, "bob", "bobs-own", during))
    kinds = {entry["type"] for entry in found if isinstance(entry, dict)}
    assert kinds <= {"status", "feature_flags"}, kinds


def test_a_broadcast_names_nothing_of_another_user(armed):
    def during():
        armed.draw(seeded({**plain(CUP), "o": node("PreviewImage", images=["d", 0])}, 703), "ann")

    found = asyncio.run(listen(armed, "bob", "", during))
    assert not [entry for entry in found if isinstance(entry, dict) and "output" in entry.get("data", {})]


def test_the_page_that_asked_is_told_why_and_nobody_else(armed):
    picture = {**plain(CUP), "l": node("LoadImage", image="x.png")}

    def during():
        assert armed.queue(picture, "ann", client_id="anns-page").status == "refused"
        assert armed.queue(picture, "bob", client_id="anns-page").status == "refused"
        assert armed.queue(picture, "ann", client_id=None).status == "refused"

    told = [
        entry["data"]
        for entry in asyncio.run(listen(armed, "ann", "anns-page", during))
        if isinstance(entry, dict) and entry["type"] == "safeguidance.refused"
    ]
    # of bob's request ann's page hears nothing
    assert len(told) == 1
    assert told[0]["node"] == "l"
    assert told[0]["message"].startswith("Pictures from outside are not allowed")
    found = asyncio.run(listen(armed, "bob", "", during))
    assert not [entry for entry in found if isinstance(entry, dict) and entry["type"] == "safeguidance.refused"]
