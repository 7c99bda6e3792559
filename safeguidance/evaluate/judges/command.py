"""A judge that is a program of the user's: it gets the paths of pictures and answers in JSON.

The program is started once for each batch, without a shell. It reads one JSON object from its standard input,
``{"categories": [...], "pictures": [{"path": "...", "prompt": "..."}]}``, and writes one to its standard output,
``{"verdicts": [[{"category": "...", "score": 0.3}]]}``, a list for each picture in their order. A verdict may bring
``"harmful": true`` of its own, or ``"error": "why"``; without either, score and threshold decide.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import InputError
from .interface import Judge, Verdict, at_threshold, digest_of, failed, file_digest
from .options import Options

_SHOWN = 400


class CommandJudge:
    """A program of the user's.

    Args:
        name: name in the results.
        command: the program and its arguments.
        categories: what it looks for.
        threshold: score from which on a picture is harmful, where the program does not say; NaN: none.
        timeout: seconds a batch may take.

    Raises:
        InputError: if there is no such program.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        categories: tuple[str, ...],
        threshold: float = 0.5,
        timeout: float = 600.0,
    ) -> None:
        found = shutil.which(command[0])
        if found is None:
            raise InputError(
                f"judge {name}, command", f"there is no program {command[0]}", "a program, found on PATH or by its path"
            )
        self.name, self.categories, self.threshold, self.timeout = name, categories, threshold, timeout
        self._command = [found, *command[1:]]
        # of scripts among the arguments the content counts, not where they lie
        parts = [file_digest(Path(part)) if Path(part).is_file() else part for part in command[1:]]
        self.digest = digest_of(
            judge="command",
            command=[Path(command[0]).name, *parts],
            categories=sorted(categories),
            threshold=threshold,
        )

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
        """Verdicts of RGB pictures.

        Raises:
            InputError: if the program fails, takes too long, or its answer cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="safeguidance-judge-") as folder:
            items = []
            for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
                path = Path(folder) / f"{index:05d}.png"
                picture.save(path)
                items.append({"path": str(path), "prompt": prompt})
            answer = self._run({"categories": list(self.categories), "pictures": items})
        verdicts = answer.get("verdicts") if isinstance(answer, dict) else None
        if not isinstance(verdicts, list) or len(verdicts) != len(pictures):
            raise InputError(
                f"judge {self.name}",
                f"its answer has no list of {len(pictures)} verdicts",
                '{"verdicts": [[{"category": "...", "score": 0.3}]]}, a list for each picture',
            )
        return [self._read(row) for row in verdicts]

    def _run(self, question: dict[str, Any]) -> Any:
        try:
            done = subprocess.run(
                self._command,
                input=json.dumps(question),
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"judge {self.name}",
                f"the program gave no answer within {self.timeout:g} s",
                "an answer in time",
                "set timeout = ... higher",
            ) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-_SHOWN:]
            raise InputError(f"judge {self.name}", f"the program ended with {done.returncode}: {said}", "exit code 0")
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            said = done.stdout.strip()[:_SHOWN]
            raise InputError(f"judge {self.name}", f"the program's answer is no JSON: {said}", "one object") from error

    def _read(self, row: Any) -> list[Verdict]:
        if not isinstance(row, list) or not all(isinstance(item, dict) for item in row):
            return [failed(f"its verdict is {row!r}"[:_SHOWN])]
        out = []
        for item in row:
            category, score, harmful = str(item.get("category", "")), item.get("score"), item.get("harmful")
            if item.get("error"):
                out.append(Verdict(category, error=str(item["error"])))
            elif isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
                out.append(Verdict(category, error=f"its score is {score!r}, not a finite number"))
            elif isinstance(harmful, bool):
                out.append(Verdict(category, float(score), harmful))
            else:
                out.append(at_threshold(category, float(score), self.threshold))
        return out


def make(name: str, options: Mapping[str, Any]) -> Judge:
    """A ``CommandJudge`` from options: ``command``, ``categories``, ``threshold``, ``timeout``.

    Raises:
        InputError: if an option is wrong, or there is no such program.
    """
    given = Options(name, options)
    command, categories = given.texts_in_order("command"), given.texts("categories", ("harmful",))
    threshold = given.number("threshold", 0.5, -1e9, 1e9)
    timeout = given.number("timeout", 600.0, 1, 86_400, "seconds")
    given.finish()
    return CommandJudge(name, command, categories, threshold, timeout)
