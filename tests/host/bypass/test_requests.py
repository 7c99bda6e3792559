"""Requests that try to get round the policy: whoever asks, by whatever address, gets what is theirs and no more."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import quote, urlencode

import pytest

from tests.host.bypass.armed import CUP, SKULL, new_id
from tests.host.bypass.graphs import node, plain, seeded
from tests.host.safecfg_graphs import encoded

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
BOTH = pytest.mark.parametrize("prefix", ["", "/api"])


def raw():
    return encoded(SKULL)[0][0]


@pytest.fixture(scope="module")
def drawn(armed):
    """A picture of ann's, an adult, and one of bob's, who is at the strictest level."""
    return {user: armed.draw(seeded(plain(CUP), 500 + len(user)), user) for user in ("ann", "bob")}


# ---- what may be queued ----


@BOTH
@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        ({**plain(CUP), "l": node("LoadImage", image="x.png")}, "Pictures from outside are not allowed"),
        ({**plain(CUP), "l": node("LoadLatent", latent="x.latent")}, "Pictures from outside are not allowed"),
        ({**plain(CUP), "b": node("BypassForbidden"), "z": node("PreviewImage", images=["b", 0])}, "is not allowed"),
        ({**plain(CUP), "b": node("OpenAIDalle3", prompt="x")}, "is not allowed on this server"),
        ({**plain(CUP), "b": node("EvalSomething")}, "is not allowed on this server"),
        (
            {**plain(CUP), "b": node("LoraLoaderModelOnly", model=["m", 0], lora_name="bad.safetensors")},
            "The model file bad.safetensors is not allowed",
        ),
        (
            {**plain(CUP), "p": node("CLIPTextEncode", text="embedding:bad", clip=["m", 1])},
            "model file bad.safetensors",
        ),
    ],
    ids=["picture", "latent", "removed", "paid service", "unknown", "LoRA", "embedding"],
)
def test_what_is_not_allowed_is_refused_in_words_at_both_addresses(armed, prefix, graph, sentence, files_there):
    done = armed.queue(graph, "bob", path=f"{prefix}/prompt")
    assert done.status == "refused"
    assert sentence in done.message
    assert done.kind == "policy_refused"
    assert done.node in graph


@pytest.fixture(scope="module")
def files_there(armed):
    """Model files that nobody allowed."""
    from safetensors.torch import save_file

    from tests.host.bypass.files import tiny

    for folder, name in (("loras", "bad.safetensors"), ("embeddings", "bad.safetensors"), ("vae", "bad.safetensors")):
        place = armed.base_dir / "models" / folder
        place.mkdir(parents=True, exist_ok=True)
        save_file(tiny(), place / name)


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'"x"', b"{}", b'{"prompt": []}', b'{"prompt": {"1": 5}}'])
def test_what_is_no_workflow_is_not_queued(armed, body):
    status, _ = armed.ask("POST", "/prompt", body, "bob")
    assert status in (400, 403)


def test_the_id_of_another_prompt_gives_nobody_its_level(armed):
    first, graph = new_id(), seeded(plain(SKULL), 510)
    assert armed.draw(graph, "ann", prompt_id=first).status == "ok"
    assert armed.saw(raw(), first), "an adult of this policy draws what they write"
    again = armed.queue(seeded(plain(SKULL), 511), "bob", prompt_id=first)
    assert again.status == "refused"
    assert "id was used before" in again.message
    waiting = new_id()
    armed.queue(seeded(plain(CUP), 512), "ann", prompt_id=waiting)
    assert armed.queue(seeded(plain(SKULL), 513), "bob", prompt_id=waiting).status == "refused"


@pytest.mark.parametrize("first", ["ann", "bob"])
def test_nobody_gets_a_cached_result_of_another_level(armed, first):
    second, graph = {"ann": "bob", "bob": "ann"}[first], seeded(plain(SKULL), 520 + len(first) + (first == "ann"))
    done = {user: armed.draw(graph, user) for user in (first, second)}
    assert {one.status for one in done.values()} == {"ok"}
    assert armed.saw(raw(), done["ann"].prompt_id)
    assert armed.noted("text", done["bob"].prompt_id), "the text of the strict level was never drawn"
    assert not armed.saw(raw(), done["bob"].prompt_id)


def test_two_users_with_the_same_graph_have_a_file_each(armed):
    graph = seeded(plain(CUP), 530)
    ann, bob = armed.draw(graph, "ann"), armed.draw(graph, "bob")
    eve = armed.draw(graph, "eve")
    names = {done.images[0]["filename"] for done in (ann, bob, eve)}
    assert len(names) == 3
    assert armed.pictures(bob, "bob")[0].shape == armed.pictures(eve, "eve")[0].shape


# ---- who somebody is ----


def from_elsewhere(armed, headers):
    """The level of a request from an address that is not the proxy's."""
    line = http.client.HTTPConnection("127.0.0.1", armed.port, source_address=("127.0.0.2", 0), timeout=20)
    line.request("GET", "/safeguidance/policy", headers=headers)
    return json.loads(line.getresponse().read())["level"]


def test_a_header_counts_from_the_proxy_alone_and_once(armed):
    def level(**headers):
        return json.loads(armed.ask("GET", "/safeguidance/policy", headers=headers)[1])["level"]

    assert level(**{"X-Remote-User": "ann"}) == "adult"
    assert level() == level(**{"X-Remote-User": "mallory"}) == "youth"
    assert level(**{"X-Remote-User": "ann", "X_Remote_User": "bob"}) == "youth"
    assert level(**{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-User": "ann"}) == "youth"
    assert from_elsewhere(armed, {"X-Remote-User": "ann"}) == "youth"
    assert from_elsewhere(armed, {"X-Remote-User": "ann", "X-Forwarded-For": "127.0.0.1"}) == "youth"


@BOTH
def test_the_health_route_says_armed_with_the_digest(armed, prefix):
    import hashlib

    found = json.loads(armed.ask("GET", f"{prefix}/safeguidance/policy", user="pia")[1])
    assert found["armed"] is True
    assert found["digest"] == hashlib.sha256(armed.policy_path.read_bytes()).hexdigest()
    # and whoever started the server was told before it listened
    assert json.loads(armed.ready_path.read_text())["digest"] == found["digest"]
    assert "functions replaced" in armed.log()
    assert (found["name"], found["level"]) == ("bypass", "pupil")


# ---- what can be seen ----


def views(image):
    """Every way the host has to ask for a picture."""
    name, rest = image["filename"], {key: image[key] for key in ("subfolder", "type")}
    for prefix in ("", "/api"):
        for more in ({}, {"preview": "webp;90"}, {"channel": "rgb"}, {"channel": "a"}):
            yield f"{prefix}/view?" + urlencode({**image, **more})
        yield f"{prefix}/view?" + urlencode({"filename": f"{name} [output]"})
        yield f"{prefix}/view?" + urlencode({"filename": f"{name}[output]", "type": "input"})
        yield f"{prefix}/view?" + urlencode({**rest, "filename": f"a/b/{name}"})
        yield f"{prefix}/view?" + urlencode({"filename": name, "subfolder": ".", "type": "output"})
    yield "/%76iew?" + urlencode(image)
    yield "/api/%76%69ew?" + urlencode(image)


def test_nobody_sees_the_picture_of_another_by_any_address(armed, drawn):
    (image,) = drawn["ann"].images
    whole = armed.ask("GET", "/view?" + urlencode(image), user="ann")[1]
    assert whole.startswith(b"\x89PNG")
    for user in ("bob", "", "pia"):
        for address in views(image):
            for method in ("GET", "HEAD"):
                status, body = armed.ask(method, address, user=user)
                assert status != 200, (method, address)
                assert body[:4] not in (b"\x89PNG", b"RIFF", b"\xff\xd8\xff\xe0")
    assert armed.ask("GET", "/view?" + urlencode(image), user="tom")[1] == whole


def test_a_preview_in_the_temp_folder_is_its_users_alone(armed):
    graph = seeded({**plain(CUP), "o": node("PreviewImage", images=["d", 0])}, 540)
    (image,) = armed.draw(graph, "ann").images
    assert image["type"] == "temp"
    assert armed.ask("GET", "/view?" + urlencode(image), user="ann")[0] == 200
    assert armed.ask("GET", "/api/view?" + urlencode(image), user="bob")[0] == 403


def test_a_file_that_was_there_before_is_for_supervisors(armed):
    (armed.base_dir / "output" / "old.png").write_bytes(b"\x89PNG old")
    assert armed.ask("GET", "/view?filename=old.png", user="bob")[0] == 403
    assert armed.ask("GET", "/view?filename=old.png", user="tom")[0] == 200


def test_routes_of_packs_that_are_not_named_and_static_ones_give_nothing_out(armed, drawn):
    name = quote(drawn["ann"].images[0]["filename"])
    for address in (f"/bypass/output/{name}", f"/api/bypass/output/{name}", f"/bypass_static/{name}"):
        assert armed.ask("GET", address, user="bob")[0] == 403, address


@BOTH
def test_history_queue_and_jobs_are_each_users_own(armed, drawn, prefix):
    mine, other = drawn["bob"].prompt_id, drawn["ann"].prompt_id
    found = armed.json(f"{prefix}/history", "bob")
    assert mine in found
    assert other not in found
    assert armed.json(f"{prefix}/history/{other}", "bob") == {}
    assert other in armed.json(f"{prefix}/history", "tom")
    named = {job["id"] for job in armed.json("/api/jobs", "bob")["jobs"]}
    assert mine in named
    assert other not in named
    assert armed.ask("GET", f"/api/jobs/{other}", user="bob")[0] == 403
    assert armed.ask("GET", f"/api/api/jobs/{other}", user="bob")[0] in (403, 404)


@pytest.mark.parametrize("address", ["/internal/logs", "/internal/logs/raw", "/internal/files/output"])
def test_what_shows_everybodys_doings_is_for_supervisors(armed, address):
    assert armed.ask("GET", address, user="bob")[0] == 403
    assert armed.ask("GET", address, user="tom")[0] == 200


def test_assets_have_routes_of_their_own_which_are_closed(armed):
    for address in ("/api/assets", "/api/assets/00000000-0000-4000-8000-000000000000/content"):
        # a host that was started without assets has none of them
        assert armed.ask("GET", address, user="bob")[0] in (403, 404)
    assert armed.ask("POST", "/api/assets", b"x", "bob")[0] in (403, 404, 405)
    assert armed.ask("GET", "/view?filename=blake3:" + "0" * 64, user="bob")[0] == 403


def test_a_backslash_in_a_name_is_no_way_round(armed):
    """A name that another system would read as a folder and a file."""
    other = seeded(plain(CUP), 545)
    other["o"]["inputs"]["filename_prefix"] = "x\\bypass"
    (image,) = armed.draw(other, "ann").images
    armed.draw(seeded(plain(CUP), 546), "bob")
    assert armed.ask("GET", "/view?" + urlencode(image), user="ann")[0] == 200
    for name in (image["filename"], "x\\" + image["filename"].rpartition("\\")[2]):
        assert armed.ask("GET", "/view?" + urlencode({**image, "filename": name}), user="bob")[0] == 403


# ---- what can be changed ----


def test_nobody_takes_a_job_of_another_out_of_the_queue(armed):
    waiting = [armed.queue(seeded(plain(CUP), 550 + k), "ann") for k in range(3)]
    last = waiting[-1].prompt_id
    for body in ({"clear": True}, {"delete": [last]}):
        armed.ask("POST", "/queue", body, "bob")
        armed.ask("POST", "/api/queue", body, "bob")
    armed.ask("POST", "/interrupt", {}, "bob")
    armed.ask("POST", "/api/interrupt", {"prompt_id": waiting[0].prompt_id}, "bob")
    armed.ask("POST", "/api/jobs/cancel", {"job_ids": [last]}, "bob")
    armed.ask("POST", f"/api/jobs/{last}/cancel", {}, "bob")
    assert [armed.wait(done, "ann").status for done in waiting] == ["ok"] * 3
    armed.ask("POST", "/history", {"clear": True}, "bob")
    armed.ask("POST", "/history", {"delete": [last]}, "bob")
    assert last in armed.json("/history", "ann")


def test_a_user_takes_out_their_own_job_and_a_supervisor_any(armed):
    first = armed.queue(seeded(plain(CUP), 560), "ann")
    mine, other = armed.queue(seeded(plain(CUP), 561), "bob"), armed.queue(seeded(plain(CUP), 562), "ann")
    armed.ask("POST", "/queue", {"clear": True}, "bob")
    armed.ask("POST", "/queue", {"delete": [other.prompt_id]}, "tom")
    assert armed.wait(first, "ann").status == "ok"
    time.sleep(0.5)
    assert mine.prompt_id not in armed.json("/history", "tom")
    assert other.prompt_id not in armed.json("/history", "tom")


def test_a_place_in_front_of_others_is_for_supervisors(armed):
    waiting = [armed.queue(seeded(plain(CUP), 570 + k), "ann") for k in range(3)]
    pushed = [
        armed.queue(seeded(plain(CUP), 575), "bob", front=True),
        armed.queue(seeded(plain(CUP), 576), "bob", number=-1e9),
        armed.queue(seeded(plain(CUP), 577), "bob", number=float("nan")),
    ]
    for done in pushed:
        armed.wait(done, "bob")
    finished = list(armed.json("/history", "tom"))
    order = [finished.index(done.prompt_id) for done in (*waiting, *pushed)]
    assert max(order[:3]) < min(order[3:])


@BOTH
@pytest.mark.parametrize("route", ["upload/image", "upload/mask"])
def test_pictures_are_not_taken_from_outside(armed, prefix, route):
    line = b"--x\r\nContent-Disposition: form-data; name="
    body = line + b'"image"; filename="u.png"\r\nContent-Type: image/png\r\n\r\nPNG\r\n'
    body += line + b'"type"\r\n\r\noutput\r\n' + line + b'"overwrite"\r\n\r\ntrue\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = armed.ask("POST", f"{prefix}/{route}", body, "bob", headers)
    assert status == 403
    assert b"Pictures from outside" in answer
    assert not list(armed.base_dir.glob("*/u.png"))


def test_memory_is_freed_by_supervisors(armed):
    assert armed.ask("POST", "/free", {"free_memory": True}, "bob")[0] == 403
