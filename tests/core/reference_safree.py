"""Slow, literal transcriptions of SAFREE: as its program computes, and as its paper prints; number by number.

Nothing is taken from the program's text; both follow our notes on what it computes. Vectors are lists of floats.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import numpy as np

Vector = list[float]


def projector(columns: Sequence[Vector]) -> np.ndarray:
    """``C (C^T C)^+ C^T`` for vectors that are the columns of C."""
    matrix = np.array(columns, dtype=np.float64).T
    gram = matrix.T @ matrix
    return matrix @ np.linalg.pinv(gram, rcond=1e-12) @ matrix.T


def distances(concept: Sequence[Vector], masked: Sequence[Vector]) -> Vector:
    """``d_i = |(I - P_C) p_i|``."""
    p = projector(concept)
    out = []
    for vector in masked:
        left = np.array(vector) - p @ np.array(vector)
        out.append(math.sqrt(sum(value * value for value in left)))
    return out


def triggers(distance: Vector, alpha: float) -> list[bool]:
    """``d_i >= (1 + alpha) mean of the others``; the program's mean of nothing is no number, which flags."""
    flagged = []
    for i, own in enumerate(distance):
        others = [d for j, d in enumerate(distance) if j != i]
        if not others:
            flagged.append(True)
            continue
        flagged.append(own >= (1 + alpha) * sum(others) / len(others))
    return flagged


def replaced(states: Sequence[Vector], concept: Sequence[Vector], masked: Sequence[Vector], order: str) -> list[Vector]:
    """Every state projected: ``(I - P_C) P_I e`` ("program") or ``P_I (I - P_C) e`` ("paper")."""
    p_c, p_i = projector(concept), projector(masked)
    keep = np.eye(len(p_c)) - p_c
    whole = keep @ p_i if order == "program" else p_i @ keep
    return [(whole @ np.array(state)).tolist() for state in states]


def released(
    states: Sequence[Vector], count: int, concept: Sequence[Vector], masked: Sequence[Vector], alpha: float = 0.01
) -> tuple[list[Vector], list[bool], float]:
    """The program for one prompt: filtered states, flags, beta.

    Args:
        states: all positions; 0 is the begin mark, 1 to ``count`` the tokens, ``count + 1`` the end mark.
        count: number of tokens.
        concept: vectors of the phrases, one list for everything.
        masked: vectors of the prompt without token i.
        alpha: threshold.
    """
    flags = triggers(distances(concept, masked), alpha)
    everything = replaced(states, concept, masked, "program")
    out = [list(state) for state in states]
    for i, flag in enumerate(flags):
        if flag:
            out[i + 1] = everything[i + 1]
    total = 0.0
    for place in range(count + 2):
        a, b = np.array(everything[place]), np.array(states[place])
        total += float(a @ b) / (math.sqrt(a @ a) * math.sqrt(b @ b))
    return out, flags, 1 - total / (count + 2)


def program_steps(beta: float, up: int = 10, t0: float = 5.333, k: float = 2.5) -> int:
    """``round(up * sigmoid(2 k (10 beta - t0)))``; steps 0 to this one are filtered."""
    return round(up / (1 + math.exp(-2 * k * (10 * beta - t0))))


def paper_steps(beta: float, gamma: int = 10) -> int:
    """``gamma * sigmoid(1 - cos)`` as printed."""
    return round(gamma / (1 + math.exp(-beta)))


def fourier(image: Sequence[Vector], inverse: bool = False) -> list[list[complex]]:
    """Two-dimensional discrete Fourier transform by its definition."""
    height, width, sign = len(image), len(image[0]), 1 if inverse else -1
    out = [[0j] * width for _ in range(height)]
    for u in range(height):
        for v in range(width):
            for y in range(height):
                for x in range(width):
                    out[u][v] += image[y][x] * cmath.exp(sign * 2j * math.pi * (u * y / height + v * x / width))
            if inverse:
                out[u][v] /= height * width
    return out


def reattended(filtered: Sequence[Vector], original: Sequence[Vector], factor: float, radius: int, band: str):
    """``F' = s F_f where |F_f| > |F_o|`` inside the square of low frequencies (frequency -radius to radius - 1)."""
    ours, theirs = fourier(filtered), fourier(original)
    height, width = len(filtered), len(filtered[0])
    for u in range(height):
        for v in range(width):
            # the frequency that a place of the transform stands for
            row = u if u < height - height // 2 else u - height
            column = v if v < width - width // 2 else v - width
            low = -radius <= row < radius and -radius <= column < radius
            wanted = band == "all" or low == (band == "low")
            if wanted and abs(ours[u][v]) > abs(theirs[u][v]):
                ours[u][v] *= factor
    return [[value.real for value in row] for row in fourier(ours, inverse=True)]
