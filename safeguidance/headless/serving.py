"""Starting ComfyUI with a policy: its own main.py, in a process of its own, which ends if the policy does not hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..policy.load import DIGEST_VARIABLE, FILE_VARIABLE
from ..policy.ready import READY_VARIABLE, read
from ..policy.schema import Policy
from .armed_main import EXIT_UNARMED
from .hosts import Host

NOT_ARMED = 4
"""Exit code of ``serve`` where the server ended, or was ended, before it was armed."""
_POLL, _GRACE = 0.1, 10.0


def serve(host: Host, policy: Policy, arguments: Sequence[str], wait: float) -> int:
    """Run the server until it ends.

    Args:
        host: checkout and interpreter.
        policy: from a file.
        arguments: of main.py.
        wait: seconds in which the pack must have answered.

    Returns:
        Its exit code, ``NOT_ARMED`` where it was never armed.

    Raises:
        InputError: if the policy is from no file.
    """
    if policy.path is None:
        raise InputError("--policy", "it is a preset", "a file", "write one: python -m safeguidance policy init FILE")
    with tempfile.TemporaryDirectory(prefix="safeguidance-serve-") as folder:
        ready = Path(folder) / "ready.json"
        environment = {
            **os.environ,
            FILE_VARIABLE: str(policy.path),
            DIGEST_VARIABLE: policy.digest,
            READY_VARIABLE: str(ready),
        }
        program = Path(__file__).with_name("armed_main.py")
        command = [str(host.python), str(program), str(host.path / "main.py"), *arguments]
        with _passed_on() as children:
            child = subprocess.Popen(command, env=environment)
            children.append(child)
            try:
                return _watch(child, policy, ready, wait)
            finally:
                _end(child)


def _watch(child: subprocess.Popen[bytes], policy: Policy, ready: Path, wait: float) -> int:
    until = time.monotonic() + wait
    while True:
        code = child.poll()
        if code is not None:
            more = "" if code == EXIT_UNARMED else f"ComfyUI ended with {code}; its own messages are above. "
            return _not_armed(f"{more}Nothing was served.")
        try:
            answer = read(ready)
        except InputError as error:
            return _not_armed(f"{error}. ComfyUI was ended.")
        if answer is not None:
            break
        if time.monotonic() > until:
            return _not_armed(f"The pack did not answer within {wait:g} seconds. ComfyUI was ended.")
        time.sleep(_POLL)
    if answer["digest"] != policy.digest:
        return _not_armed("The pack answered with another policy. ComfyUI was ended.")
    print(f"armed with the policy {policy.name!r}, digest {policy.digest}", file=sys.stderr, flush=True)
    code = child.wait()
    # ended by a signal: as a shell says it
    return 128 - code if code < 0 else code


def _not_armed(text: str) -> int:
    print(f"error: the server is not armed. {text}", file=sys.stderr, flush=True)
    return NOT_ARMED


@contextmanager
def _passed_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Pass the signal that ends a service on to the child, which then ends as it always does."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    # Ctrl-C reaches the child by itself, as one of the terminal's group
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
