"""``serve`` starts main.py with its policy, and nothing listens unless the pack in that process answers with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from safeguidance.__main__ import main
from safeguidance.headless import armed_main
from safeguidance.headless.hosts import make_host
from safeguidance.headless.serving import NOT_ARMED, serve
from safeguidance.policy.load import load
from tests.core.policy_documents import SMALLEST, toml

ROOT = Path(__file__).resolve().parents[2]
# a program that listens as ComfyUI does, and says so; in place of ANSWER it does what the pack does, or does not
PROGRAM = """
import asyncio, json, os, sys
from pathlib import Path

here = Path(__file__).parent
digest, ready = os.environ["SAFEGUIDANCE_POLICY_DIGEST"], Path(os.environ["SAFEGUIDANCE_POLICY_READY"])

def answer(**values):
    ready.write_text(json.dumps({"digest": digest, "pid": os.getpid(), "name": "small", **values}))

async def serve():
    ANSWER
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    seen = [__name__, sys.argv, sys.path[0], os.environ["SAFEGUIDANCE_POLICY"], digest]
    (here / "part").write_text(json.dumps(seen))
    os.replace(here / "part", here / "listening")
    END
    return server

if __name__ == "__main__":
    asyncio.run(serve())
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    for name in ("main.py", "execution.py", "nodes.py"):
        (folder / name).write_text("")
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    for name in ("SAFEGUIDANCE_POLICY", "SAFEGUIDANCE_POLICY_DIGEST", "SAFEGUIDANCE_POLICY_READY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "policy.toml").write_bytes(toml(SMALLEST))
    return folder


def served(checkout, capfd, answer, end="pass", arguments=(), wait=60.0):
    """The exit code of ``serve`` on a program, and what is written to standard error."""
    (checkout / "main.py").write_text(PROGRAM.replace("ANSWER", answer).replace("END", end))
    policy = load(checkout.parent / "policy.toml")
    code = serve(make_host(checkout), policy, arguments, wait)
    return code, capfd.readouterr().err


def test_an_armed_server_listens_and_its_end_is_the_commands_end(checkout):
    end = "await asyncio.sleep(0.5); sys.exit(7)"
    (checkout / "main.py").write_text(PROGRAM.replace("ANSWER", "answer()").replace("END", end))
    file = str(checkout.parent / "policy.toml")
    command = [sys.executable, "-m", "safeguidance", "serve", "--policy", file, "--comfyui", str(checkout)]
    found = subprocess.run([*command, "--", "--port", "1", "a b"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 7
    digest = load(file).digest
    assert f"armed with the policy 'small', digest {digest}" in found.stderr
    arguments = [str(checkout / "main.py"), "--port", "1", "a b"]
    seen = json.loads((checkout / "listening").read_text())
    assert seen == ["__main__", arguments, str(checkout), file, digest]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("pass", "the pack did not answer"),
        ("answer(digest='0' * 64)", "another policy"),
        ("ready.write_text('')", "no answer of the pack"),
        ("ready.write_text('[]')", "no answer of the pack"),
        ("ready.write_text('{}')", "no answer of the pack"),
        ("ready.mkdir()", "cannot be read"),
        ("await asyncio.sleep(1)", "the pack did not answer"),
    ],
)
def test_nothing_listens_without_the_packs_answer(checkout, capfd, answer, said):
    code, errors = served(checkout, capfd, answer)
    assert code == NOT_ARMED
    # whichever of the two processes saw it first
    assert said in errors or "error: ComfyUI does not start without its policy" in errors
    assert "error: the server is not armed" in errors
    assert "armed with the policy" not in errors
    assert not (checkout / "listening").exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("pass", "the pack did not answer"),
        ("answer(digest='0' * 64)", "armed with 000000000000..., not with"),
        ("answer(pid=1)", "another process answered"),
        ("ready.write_text('{}')", "cannot be read"),
        ("ready.mkdir()", "cannot be read"),
        ("answer(); ready.unlink()", "the pack did not answer"),
    ],
)
def test_the_process_itself_ends_before_it_listens(checkout, tmp_path, answer, said):
    (checkout / "main.py").write_text(PROGRAM.replace("ANSWER", answer).replace("END", "pass"))
    ready = {"SAFEGUIDANCE_POLICY_READY": str(tmp_path / "ready"), "SAFEGUIDANCE_POLICY_DIGEST": "ab" * 32}
    environment = {**os.environ, **ready, "SAFEGUIDANCE_POLICY": "x"}
    command = [sys.executable, armed_main.__file__, str(checkout / "main.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == armed_main.EXIT_UNARMED
    assert said in found.stderr
    assert not (checkout / "listening").exists()


@pytest.mark.parametrize("answer", ["raise OSError('broken')", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_program_that_fails_before_is_an_error_in_words(checkout, capfd, answer):
    code, errors = served(checkout, capfd, answer)
    assert code == NOT_ARMED
    assert "ComfyUI ended with" in errors
    assert not (checkout / "listening").exists()


def test_a_program_that_never_answers_is_ended(checkout, capfd):
    answer = "(here / 'pid').write_text(str(os.getpid())); await asyncio.sleep(600)"
    code, errors = served(checkout, capfd, answer, wait=3)
    assert code == NOT_ARMED
    assert "did not answer within 3 seconds" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((checkout / "pid").read_text()), 0)


PACK = f"sys.path.insert(0, {str(ROOT)!r}); from safeguidance.policy import load, ready as r; "


def test_a_file_that_changes_after_the_check_is_found_by_its_digest(checkout, capfd):
    change = "Path(os.environ['SAFEGUIDANCE_POLICY']).open('a').write('# more'); "
    code, errors = served(checkout, capfd, PACK + change + "r.announce(load.load_armed())")
    assert code == NOT_ARMED
    assert "it was changed" in errors
    assert not (checkout / "listening").exists()


def test_the_packs_own_answer_is_the_one_that_is_waited_for(checkout, capfd):
    code, errors = served(checkout, capfd, PACK + "assert r.announce(load.load_armed())", "await asyncio.sleep(0.5)")
    assert code == 0
    assert "armed with the policy" in errors
    assert (checkout / "listening").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_that_ends_a_service_ends_the_server(checkout, capfd, number):
    end = "(here / 'part').write_text(str(os.getpid())); os.replace(here / 'part', here / 'pid'); "

    def send():
        while not (checkout / "pid").exists():
            time.sleep(0.02)
        if number == signal.SIGINT:
            # a terminal sends it to both
            os.kill(int((checkout / "pid").read_text()), number)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code, _ = served(checkout, capfd, "answer()", end + "await asyncio.sleep(600)")
    sender.join()
    assert code != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((checkout / "pid").read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "version: it is missing"), (toml({**SMALLEST, "loadd": 1}), "there is no such field"), (None, "be read")],
)
def test_a_policy_that_is_not_allowed_starts_nothing(checkout, capsys, content, said):
    (checkout / "main.py").write_text("from pathlib import Path; Path(__file__).with_name('listening').touch()")
    policy = checkout.parent / "policy.toml"
    policy.unlink() if content is None else policy.write_bytes(content)
    assert main(["serve", "--policy", str(policy), "--comfyui", str(checkout)]) == 2
    assert said in capsys.readouterr().err
    assert not (checkout / "listening").exists()


@pytest.mark.parametrize("arguments", [["--comfyui", "nowhere"], ["--wait", "0"], ["--wait", "nan"]])
def test_other_arguments_are_checked_too(checkout, capsys, arguments):
    policy = str(checkout.parent / "policy.toml")
    assert main(["serve", "--policy", policy, "--comfyui", str(checkout), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err
