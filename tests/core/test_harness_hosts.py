"""Finding hosts, and counting what their test runs did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from safeguidance.__main__ import main
from safeguidance.headless.hosts import PACK_ROOT, HostError, find_hosts, find_python, make_host, require_host
from tools import browser, suite

ELSEWHERE = Path("/nowhere/pack")


def checkout(path: Path, version: str = "0.33.0", venv: str | None = ".venv") -> Path:
    path.mkdir(parents=True)
    for name in ("main.py", "execution.py", "nodes.py"):
        (path / name).write_text("")
    (path / "comfyui_version.py").write_text(f'# generated\n__version__ = "{version}"\n')
    if venv:
        (path / venv / "bin").mkdir(parents=True)
        (path / venv / "bin" / "python").symlink_to(sys.executable)
    return path


def test_paths_of_the_caller_come_first(tmp_path):
    one, two = checkout(tmp_path / "one"), checkout(tmp_path / "two", "0.12.0", "venv")
    hosts = find_hosts([one, two, one], {"COMFYUI_PATH": "/nowhere"}, ELSEWHERE)
    assert [(host.path, host.version) for host in hosts] == [(one, "0.33.0"), (two, "0.12.0")]
    assert hosts[1].python == two / "venv" / "bin" / "python"


def test_several_hosts_in_the_environment(tmp_path):
    one, two = checkout(tmp_path / "one"), checkout(tmp_path / "two")
    paths = os.pathsep.join(map(str, (two, one)))
    assert [host.path for host in find_hosts(None, {"COMFYUI_PATH": paths}, ELSEWHERE)] == [two, one]


def test_the_checkout_around_the_pack(tmp_path):
    around = checkout(tmp_path / "around")
    checkout(tmp_path / "comfy" / "ComfyUI")
    pack = around / "custom_nodes" / "safeguidance"
    pack.mkdir(parents=True)
    assert [host.path for host in find_hosts(None, {"HOME": str(tmp_path)}, pack)] == [around]


def test_the_default_workspace_and_its_siblings(tmp_path):
    for name, version in (("ComfyUI-0.9.0", "0.9.0"), ("ComfyUI-0.12.0", "0.12.0"), ("ComfyUI", "0.33.0")):
        checkout(tmp_path / "comfy" / name, version)
    (tmp_path / "comfy" / "ComfyUI-notes").mkdir()
    hosts = find_hosts(None, {"HOME": str(tmp_path)}, ELSEWHERE)
    assert [host.version for host in hosts] == ["0.33.0", "0.12.0", "0.9.0"]


def test_none_at_all(tmp_path, monkeypatch):
    assert find_hosts(None, {"HOME": str(tmp_path)}, ELSEWHERE) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(HostError, match="comfy install"):
        require_host()


def test_a_wrong_path_is_named_and_never_skipped(tmp_path):
    with pytest.raises(HostError, match=r"empty \(from COMFYUI_PATH\) is no ComfyUI checkout"):
        find_hosts(None, {"COMFYUI_PATH": str(tmp_path / "empty")}, ELSEWHERE)


def test_core_tests_are_collected_without_a_host_and_with_a_wrong_path(tmp_path):
    # in a process of its own: what a module does when it is imported is what matters here
    found = [path for path in Path(__file__).parent.glob("test_*.py") if "find_hosts" in path.read_text()]
    assert len(found) > 1
    variables = {**os.environ, "COMFYUI_PATH": str(tmp_path / "none")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *map(str, found)]
    done = subprocess.run(command, cwd=PACK_ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [([], "HOST TESTS DID NOT RUN: ", 1), (["--core-only"], "TRAINING ON A HOST WAS NOT TESTED: ", 0)],
)
def test_the_summary_names_a_wrong_path(monkeypatch, capsys, tmp_path, arguments, line, code):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(suite, "run_pytest", lambda *_: suite.Outcome(10))
    assert suite.main(arguments) == code
    assert f"{line}{tmp_path / 'none'} (from COMFYUI_PATH) is no ComfyUI checkout" in capsys.readouterr().out


def test_the_interpreter(tmp_path):
    bare = checkout(tmp_path / "bare", venv=None)
    assert find_python(bare, {"COMFYUI_PYTHON": sys.executable}) == Path(sys.executable)
    with pytest.raises(HostError, match="COMFYUI_PYTHON"):
        make_host(bare, {})
    with pytest.raises(HostError, match="which is no file"):
        find_python(bare, {"COMFYUI_PYTHON": "/no/python"})


def test_the_command_line_without_a_host(tmp_path, capsys):
    assert main(["comfyui", "run", "x.json", "--comfyui", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    assert "NO COMFYUI" in capsys.readouterr().err


def test_a_missing_pack_is_an_import_failure(tmp_path):
    code = "import sys; from safeguidance.headless.worker import main; sys.exit(main(sys.argv[1:]))"
    host = checkout(tmp_path / "host")
    workflow = tmp_path / "wf.json"
    workflow.write_text("{}")
    paths = {"host": host, "pack": tmp_path, "workflow": workflow, "out": tmp_path}
    spec = json.dumps({"command": "run", **{name: str(path) for name, path in paths.items()}})
    done = subprocess.run([sys.executable, "-c", code, spec], cwd=PACK_ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("IMPORT FAILED"), done.stderr
    assert '"ok": false' in (tmp_path / "result.json").read_text()


JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="one"/><testcase classname="a" name="two"><skipped/></testcase>
<testcase classname="a" name="three"><failure/></testcase>
<testcase classname="a" name="three"><error/></testcase>
<testcase classname="a" name="four"/><testcase classname="a" name="four"><error/></testcase>
</testsuite></testsuites>"""


def test_counting(tmp_path):
    (tmp_path / "j.xml").write_text(JUNIT)
    outcome = suite.read_junit(tmp_path / "j.xml")
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)
    assert outcome.text() == "1 passed, 2 failed, 1 skipped"


def test_arguments_go_where_they_belong():
    here = "tests/core/test_harness_hosts.py::test_counting"
    there = "tests/host/conftest.py"
    seen = "tests/browser/test_examples.py"
    assert suite.split_arguments(["-q", here, there, seen, "-k", "tests"]) == (
        ["-q", "-k", "tests"],
        {"core": [here], "host": [there], "browser": [seen]},
    )
    everything = {"core": ["tests"], "host": ["tests/host"], "browser": ["tests/browser"]}
    assert suite.split_arguments(["tests"]) == ([], everything)


def test_an_interpreter_without_pytest_is_a_failure(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    outcome = suite.run_pytest(python, [], {}, False)
    assert outcome.failed == 1
    assert f"{python} -m pip install pytest" in outcome.note


def test_collecting_nothing_is_a_failure_unless_tests_were_selected(tmp_path):
    arguments = [str(tmp_path), "-q", "-p", "no:cacheprovider"]
    assert suite.run_pytest(sys.executable, arguments, {}, False).note == "COLLECTED NOTHING"
    assert suite.run_pytest(sys.executable, arguments, {}, True).failed == 0


def run_suite(monkeypatch, capsys, hosts, results, *arguments, lacking="no Chromium"):
    monkeypatch.setattr(suite, "find_hosts", lambda paths: hosts)
    monkeypatch.setattr(suite.browser, "missing", lambda host: lacking)
    queue = list(results)
    monkeypatch.setattr(suite, "run_pytest", lambda *_: queue.pop(0))
    code = suite.main(list(arguments))
    return code, capsys.readouterr().out.strip().splitlines()


def test_the_last_lines_name_hosts_and_totals(monkeypatch, capsys, tmp_path):
    host = make_host(checkout(tmp_path / "host"))
    results = [suite.Outcome(10), suite.Outcome(3, 1, 2)]
    code, lines = run_suite(monkeypatch, capsys, [host], results)
    assert code == 1
    assert lines[-3] == f"HOST TESTS: ComfyUI 0.33.0 ({host.path}): 3 passed, 1 failed, 2 skipped"
    assert lines[-2].startswith("BROWSER TESTS DID NOT RUN: no Chromium. ")
    assert "make browser" in lines[-2]
    assert lines[-1] == "13 passed, 1 failed, 2 skipped"


def test_the_browser_tests_run_on_the_newest_host(monkeypatch, capsys, tmp_path):
    hosts = [make_host(checkout(tmp_path / version, version)) for version in ("0.12.0", "0.33.0")]
    results = [suite.Outcome(10), suite.Outcome(3), suite.Outcome(3), suite.Outcome(5, 1)]
    code, lines = run_suite(monkeypatch, capsys, hosts, results, lacking="")
    assert code == 1
    assert lines[-2] == f"BROWSER TESTS: ComfyUI 0.33.0 ({hosts[1].path}): 5 passed, 1 failed"
    code, lines = run_suite(monkeypatch, capsys, hosts, [suite.Outcome(5)], "--browser-only", lacking="")
    assert code == 0
    assert lines[-1] == "5 passed, 0 failed"


def test_hosts_run_at_once_and_print_one_after_the_other(monkeypatch, capsys, tmp_path):
    hosts = [make_host(checkout(tmp_path / version, version)) for version in ("0.33.0", "0.12.0")]
    both_run = threading.Barrier(2, timeout=30)

    def run(python, arguments, environment, selecting, log=None):
        both_run.wait()
        assert environment["OMP_NUM_THREADS"] == "1"
        place = Path(environment[suite.HOST_VARIABLE])
        if log is None:
            print(f"tests of {place.name}", flush=True)
        else:
            log.write(f"tests of {place.name}\n".encode())
        return suite.Outcome(3 if place.name == "0.33.0" else 4)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(suite, "cores", lambda: 2)
    monkeypatch.setattr(suite, "run_pytest", run)
    outcomes = suite.run_hosts(hosts, [], [], "none", False)
    assert [outcome.passed for outcome in outcomes] == [3, 4]
    announced, *lines = capsys.readouterr().out.split("\n=== ")
    assert announced.strip() == f"At the same time, shown when they are done: {hosts[1].label}"
    assert [line.strip() for line in lines] == [f"{host.label} ===\ntests of {host.path.name}" for host in hosts]


@pytest.mark.parametrize(
    ("cores", "options", "selecting", "processes"),
    [(4, [], False, 4), (1, [], False, 1), (4, ["-k", "x"], True, 1), (4, ["--pdb"], False, 1)],
)
def test_one_host_gets_a_process_per_core(monkeypatch, tmp_path, cores, options, selecting, processes):
    host, seen = make_host(checkout(tmp_path / "host")), []
    monkeypatch.setattr(suite, "cores", lambda: cores)
    monkeypatch.setattr(suite, "_has", lambda python, module: True)
    monkeypatch.setattr(suite, "run_pytest", lambda python, arguments, *_: seen.append(arguments) or suite.Outcome(1))
    suite.run_hosts([host], options, [], "none", selecting)
    (arguments,) = seen
    found = int(arguments[arguments.index("-n") + 1]) if "-n" in arguments else 1
    assert found == processes


def test_what_a_browser_test_lacks_is_named(tmp_path):
    host = make_host(checkout(tmp_path / "host"))
    lacking = browser.missing(host, {"PATH": str(tmp_path)})
    assert "no Chromium" in lacking
    assert "no Node.js" in lacking
    assert "no comfyui-frontend-package" in lacking
    assert browser.missing(None) == "no ComfyUI"


def test_only_errors_of_the_own_server_count():
    own = "http://127.0.0.1:8188"
    outside = {"text": "Connecting to 'https://models.example/x' violates the policy", "url": f"{own}/a.js"}
    ours = {"text": "TypeError: x is undefined", "url": f"{own}/a.js"}
    assert browser._names_outside(outside, own)
    assert not browser._names_outside(ours, own)


def test_without_a_host_the_end_says_so_in_capitals(monkeypatch, capsys):
    code, lines = run_suite(monkeypatch, capsys, [], [suite.Outcome(10)])
    assert code == 0
    assert lines[-3].startswith("NO COMFYUI FOUND: HOST TESTS DID NOT RUN. ")
    assert "comfy install" in lines[-3]
    assert lines[-2].startswith("BROWSER TESTS DID NOT RUN")
    assert lines[-1] == "10 passed, 0 failed"
