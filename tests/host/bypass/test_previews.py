"""Pictures that are sent while others form: where a judge looks at each, and where the policy lets all of them go."""

from __future__ import annotations

import asyncio

import pytest

from tests.host.bypass.armed import CUP, POLICY, Armed
from tests.host.bypass.files import classifier
from tests.host.bypass.graphs import node, plain, seeded
from tests.host.bypass.listening import listen, previews

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
LATENT = ("--preview-method", "latent2rgb")
LEVELS = ("youth", "adult", "pupil", "notice", "hgr", "concepts", "spguard", "spstrict", "safree", "none", "teacher")
JUDGE = '[levels.{}.judge]\nkind = "classifier"\nfile = "judge"\nthreshold = 0.5\nlabels = {{ red = "sexual" }}\n'
RED, BLUE = (224, 16, 16), (16, 16, 224)


@pytest.fixture(scope="module")
def judged(host, tmp_path_factory):
    """A server that judges previews, and pictures too."""
    folder = tmp_path_factory.mktemp("previews-judged")
    classifier(folder / "judge")
    text = POLICY.replace('previews = "off"', 'previews = "judged"')
    text = text.replace("[identity]\n", "".join(map(JUDGE.format, LEVELS)) + "[identity]\n", 1)
    with Armed(host, folder, text, arguments=LATENT) as server:
        yield server


@pytest.fixture(scope="module")
def shown(host, tmp_path_factory):
    """A server that sends previews as they are."""
    text = POLICY.replace('previews = "off"', 'previews = "on"')
    with Armed(host, tmp_path_factory.mktemp("previews-on"), text, arguments=LATENT) as server:
        yield server


def sent(server, colour):
    """How many previews a client gets of a node that sends one of a colour."""
    made = node("BypassPreview", **dict(zip(("red", "green", "blue"), colour, strict=True)))

    def during():
        done = server.draw({"b": made, "o": node("SaveImage", images=["b", 0], filename_prefix="p")}, "ann")
        assert done.status == "ok", done

    return previews(asyncio.run(listen(server, "ann", "client-ann", during)))


def forming(server, seed):
    """How many previews a client gets while a harmless picture forms."""

    def during():
        assert server.draw(seeded(plain(CUP), seed), "ann").status == "ok"

    return previews(asyncio.run(listen(server, "ann", "client-ann", during)))


def test_a_preview_that_the_judge_refuses_is_not_sent(judged):
    assert sent(judged, RED) == 0
    assert sent(judged, BLUE) == 1


def test_previews_that_the_judge_lets_pass_are_sent_while_a_picture_forms(judged):
    assert forming(judged, 720) > 0


def test_where_the_policy_says_on_every_preview_is_sent(shown):
    assert sent(shown, (225, 16, 16)) == 1
    assert forming(shown, 721) > 0


def test_another_user_gets_none_of_them(shown):
    def during():
        assert shown.draw(seeded(plain(CUP), 722), "ann").status == "ok"

    assert previews(asyncio.run(listen(shown, "bob", "client-bob", during))) == 0
