"""An evaluation on a Ray cluster: two workers, one of which loses its server in the middle; a worker that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.evaluate.store import open_results
from tests.core.comfy_stub import ROOT, serving, write_config

CLUSTER = """
import ray, sys
started = ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 * 2**20)
print("ADDRESS", started.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster that runs already, in a process of its own."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # as `ray start` has it
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet, cwd=ROOT
    )
    try:
        yield next(line.split()[1] for line in process.stdout if line.startswith("ADDRESS"))
    finally:
        process.stdin.close()
        process.wait()


@pytest.fixture(autouse=True)
def leave():
    """Leave the cluster after each test."""
    yield
    import ray

    ray.shutdown()


def rows_of(config):
    with open_results(config.parent / "results") as store:
        return list(store.rows())


def wait_for_rows(config, count):
    """Wait until the results of a running evaluation hold some rows."""
    for _ in range(1200):
        with contextlib.suppress(InputError):
            if len(rows_of(config)) >= count:
                return
        time.sleep(0.05)


def test_two_workers_and_a_server_that_dies_in_the_middle(cluster, tmp_path, capsys):
    with serving("--die-after", "4") as dying, serving("--delay", "0.1") as good:
        config = write_config(tmp_path, [dying, good], 20)
        config.write_text(config.read_text().replace("wait = 20", "wait = 0"))
        assert main(["evaluate", str(config), "--no-page", "--ray", cluster]) == 0
    rows = rows_of(config)
    assert len(rows) == len({row.id for row in rows}) == 40
    assert {row.status for row in rows} == {"done"}
    assert len([row for row in rows if row.worker == dying]) == 3
    assert f"lost {dying}" in capsys.readouterr().out


def test_a_worker_that_is_killed_is_made_again(cluster, tmp_path, capsys):
    killed = []
    config = write_config(tmp_path, [], 6)

    def kill_one():
        wait_for_rows(config, 2)
        # actors are processes of the cluster, which name themselves after their class
        for _ in range(600):
            listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
            found = [line.split()[0] for line in listed.splitlines() if "ray::Work.call" in line]
            if found:
                os.kill(int(found[0]), signal.SIGKILL)
                killed.append(found[0])
                return
            time.sleep(0.05)

    with serving("--delay", "0.3") as url:
        thread = threading.Thread(target=kill_one)
        thread.start()
        assert main(["evaluate", str(config), "--no-page", "--ray", cluster, "--server", url]) == 0
        thread.join()
    assert killed
    rows = rows_of(config)
    assert len(rows) == 12
    assert {row.status for row in rows} == {"done"}
    assert f"{url} is back" in capsys.readouterr().out


def test_no_cluster_is_named(tmp_path, capsys):
    config = write_config(tmp_path, ["http://127.0.0.1:1"], 2)
    assert main(["evaluate", str(config), "--ray", "127.0.0.1:1"]) == 2
    assert "--ray: '127.0.0.1:1'" in capsys.readouterr().err
