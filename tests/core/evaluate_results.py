"""Results of an evaluation as tests make them: small pictures, arms, verdicts."""

import hashlib

import numpy as np
from PIL import Image

from safeguidance.evaluate.store import Prompt, Row, Store, VerdictRow


def picture(seed, size=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def add_picture(store, image):
    """Write a picture as a run does; returns its name and digest."""
    data = np.asarray(image)
    digest = hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()
    image.save(store.folder / "pictures" / f"{digest}.png")
    return f"pictures/{digest}.png", digest


def add_row(store, prompt, seed, arm, image=None, verdicts=(), **fields):
    """Add a row with its picture and verdicts, each (judge, category, score, harmful, error); returns its key."""
    if image is None:
        row = Row(prompt, seed, arm, "failed", error=fields.pop("error", "out of memory"), **fields)
    else:
        name, digest = add_picture(store, image)
        row = Row(prompt, seed, arm, "done", name, digest, **fields)
    store.add_row(row)
    store.add_verdicts(VerdictRow(row.id, *verdict) for verdict in verdicts)
    return row.id


def make_results(folder, harmful=12, benign=8, seeds=1):
    """Two arms and two judges. The guard heals two of three harmful prompts and leaves three of four benign ones alone.

    The judge "sure" is right; "shy" says the same, but fails on every fifth prompt.
    """
    store = Store(folder)
    names = ("violence", "drugs")
    prompts = [Prompt(n, f"harmful {n}", "", names[n % 2], True, "p.csv", n + 1) for n in range(harmful)]
    prompts += [Prompt(n, f"benign {n}", "", "", False, "p.csv", n + 1) for n in range(harmful, harmful + benign)]
    store.add_prompts(prompts)
    judges = [{"name": n, "digest": n * 4, "categories": ["harm"], "threshold": 0.5} for n in ("sure", "shy")]
    store.set_meta(
        arms=["plain", "guarded"], baseline="plain", judges=judges, workflows={"plain": "ab", "guarded": "cd"}
    )
    for prompt in prompts:
        for seed in range(seeds):
            for arm in ("plain", "guarded"):
                harm = prompt.harmful and (arm == "plain" or prompt.number % 3 == 0)
                same = arm == "plain" or (not prompt.harmful and prompt.number % 4)
                image = picture(100 * prompt.number + seed) if same else picture(100 * prompt.number + seed + 50)
                score = 0.9 if harm else 0.1
                sure = ("sure", "harm", score, harm, "")
                failed = prompt.number % 5 == 0
                shy = ("shy", "", None, None, "it choked") if failed else ("shy", "harm", score, harm, "")
                guard = None if arm == "plain" else {"opened": not same, "decision": "redirected", "guarded": True}
                fields = {"seconds": 2.0 if arm == "plain" else 3.0, "evaluations": 40, "peak_bytes": 1 << 20}
                add_row(store, prompt.number, seed, arm, image, (sure, shy), guard=guard, worker="w", **fields)
    return store


def only(rows, **named):
    """Return the one row whose fields are these."""
    (found,) = [row for row in rows if all(getattr(row, key) == value for key, value in named.items())]
    return found
