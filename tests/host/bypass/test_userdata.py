"""Settings and saved workflows of an armed server: each user has their own, by whatever name or address they ask."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
BOTH = pytest.mark.parametrize("prefix", ["", "/api"])
SECRET = {"nodes": [], "note": "ann's own"}


@pytest.fixture(scope="module")
def anns(armed):
    """A workflow and a setting of ann's."""
    assert armed.ask("POST", "/userdata/workflows%2Fmine.json", SECRET, "ann")[0] == 200
    assert armed.ask("POST", "/settings", {"Test.Own": "ann's"}, "ann")[0] == 200


@BOTH
def test_what_a_user_saves_is_there_for_them(armed, anns, prefix):
    assert json.loads(armed.ask("GET", f"{prefix}/userdata/workflows%2Fmine.json", user="ann")[1]) == SECRET
    assert armed.json(f"{prefix}/settings", "ann")["Test.Own"] == "ann's"
    assert armed.json(f"{prefix}/userdata?dir=workflows", "ann") == ["mine.json"]


@BOTH
@pytest.mark.parametrize("user", ["bob", "tom", ""])
def test_nobody_else_reads_lists_changes_or_removes_it(armed, anns, prefix, user):
    mine = f"{prefix}/userdata/workflows%2Fmine.json"
    (folder,) = (armed.base_dir / "user").glob("policy-ann-*")
    for path in (mine, f"{prefix}/userdata/..%2F{folder.name}%2Fworkflows%2Fmine.json"):
        status, body = armed.ask("GET", path, user=user)
        assert status != 200
        assert b"ann's own" not in body
    for address in (f"{prefix}/settings", f"{prefix}/settings/Test.Own", f"{prefix}/userdata?dir=workflows"):
        assert b"ann" not in armed.ask("GET", address, user=user)[1]
    armed.ask("POST", f"{prefix}/settings", {"Test.Own": "changed"}, user)
    armed.ask("POST", f"{mine}?overwrite=true", {"changed": True}, user)
    armed.ask("POST", f"{mine}/move/workflows%2Ftaken.json", None, user)
    armed.ask("DELETE", mine, user=user)
    assert json.loads(armed.ask("GET", mine, user="ann")[1]) == SECRET
    assert armed.json(f"{prefix}/settings", "ann")["Test.Own"] == "ann's"


def test_the_hosts_own_header_for_users_counts_for_nothing(armed, anns):
    (folder,) = (armed.base_dir / "user").glob("policy-ann-*")
    for name in ("default", folder.name):
        found = armed.ask("GET", "/settings", user="bob", headers={"comfy-user": name})
        assert b"ann" not in found[1]


def test_users_of_the_host_are_made_by_supervisors(armed):
    assert armed.ask("POST", "/users", {"username": "x"}, "bob")[0] == 403
