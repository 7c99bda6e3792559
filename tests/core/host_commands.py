"""Several commands of `python -m safeguidance comfyui` one after the other in one host, since booting takes longest.

`python -m tests.core.host_commands LINES`, also under accelerate; LINES is a JSON list of argument lists. The real
command line reads them and starts the host's interpreter, whose worker is this module too. Each command is followed by
a line with its exit code.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safeguidance.headless import distributed, worker
from safeguidance.headless.hosts import PACK_ROOT
from safeguidance.headless.launch import run_in_host

END = "--- ended with "


def run_all(lines, launch=()):
    """Run the commands in a process of their own, or in several.

    Returns:
        (exit code, what was printed) of each.
    """
    command = [sys.executable, *launch, "-m", "tests.core.host_commands", json.dumps(lines)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PACK_ROOT, env=variables, capture_output=True, text=True)
    results, printed = [], []
    for line in done.stdout.splitlines():
        if line.startswith(END):
            results.append((int(line.removeprefix(END)), "\n".join(printed)))
            printed = []
        else:
            printed.append(line)
    assert len(results) == len(lines), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return results


def start(lines):
    """Read the command lines, then start the host once for all."""
    from safeguidance.__main__ import main
    from safeguidance.commands import comfyui

    hosts, specs = [], []

    def keep(host, spec):
        hosts.append(host)
        specs.append(spec)
        return 0

    comfyui.run_in_host = keep
    for line in lines:
        main(["comfyui", *line])
    return run_in_host(hosts[0], {**specs[0], "all": specs}, "tests.core.host_commands")


def work(spec):
    """Run the commands in the host, under its interpreter."""
    with tempfile.TemporaryDirectory(prefix="safeguidance-host-", ignore_cleanup_errors=True) as folder:
        worker.start_host(spec, Path(folder))
        for one in spec["all"]:
            code = worker.main([json.dumps({**one, "host": spec["host"]})])
            if distributed.process_index() == 0:
                distributed.say(f"{END}{code}")
    return 0


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.exit(start(given) if isinstance(given, list) else work(given))
