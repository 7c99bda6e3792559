"""Two hundred prompts of four users at once: none is lost, and nobody gets another's level, picture or history."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.host.bypass.armed import BOMB, CUP, SKULL
from tests.host.bypass.graphs import plain, seeded
from tests.host.safecfg_graphs import encoded

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
USERS, EACH = ("ann", "bob", "pia", "nora"), 50
TEXTS = (SKULL, CUP, BOMB)


def test_two_hundred_prompts_of_four_users_at_once(armed):
    armed.forget()
    graphs = {}
    for number in range(EACH):
        for place, user in enumerate(USERS):
            # every seed is used by all four, so that the cache would give one's result to another if it could
            graph = seeded(plain(TEXTS[(number + place) % 3]), 900 + number % 10)
            graph["s"]["inputs"]["steps"] = 1
            graphs[user, number] = graph

    def send(key):
        return key, armed.queue(graphs[key], key[0])

    with ThreadPoolExecutor(8) as pool:
        queued = dict(pool.map(send, graphs))
    assert {done.status for done in queued.values()} == {"queued"}
    assert len({done.prompt_id for done in queued.values()}) == len(USERS) * EACH
    ended = {key: armed.wait(done, key[0], 400) for key, done in queued.items()}
    harmful = {text: encoded(text)[0][0] for text in (SKULL, BOMB)}
    for (user, _), done in ended.items():
        text = graphs[user, _]["p"]["inputs"]["text"]
        if text == CUP or user in ("ann", "bob", "nora"):
            assert done.status == "ok", (user, text, done)
        else:
            assert done.status == "error", (user, text, done)
            assert done.message == "This picture is not for our class."
            assert not done.images
        for states in harmful.values():
            # ann's level guards nothing, and hers alone may draw it
            assert not (user != "ann" and armed.saw(states, done.prompt_id)), (user, text)
    for user in USERS:
        own = {done.prompt_id for (name, _), done in ended.items() if name == user}
        seen = json.loads(armed.ask("GET", "/history", user=user)[1])
        others = {done.prompt_id for (name, _), done in ended.items() if name != user}
        assert own <= set(seen)
        assert not others & set(seen)
    lines = {entry["prompt_id"]: entry for entry in armed.audit() if entry["stage"] == "prompt"}
    levels = {"ann": "adult", "bob": "youth", "pia": "pupil", "nora": "notice"}
    for (user, _), done in ended.items():
        if done.prompt_id in lines:
            assert (lines[done.prompt_id]["user"], lines[done.prompt_id]["level"]) == (user, levels[user])
    drawn = [key for key, done in ended.items() if armed.noted("text", done.prompt_id)]
    assert all(ended[key].prompt_id in lines for key in drawn), "something was drawn that the log does not know"
