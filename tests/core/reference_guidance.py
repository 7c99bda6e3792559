"""Slow, literal transcriptions of the concept guidance formulas, number by number, in noise units where published so.

A prediction of one sample is a dict from element index to float: ``{(channel, *place): value}``.
"""

from __future__ import annotations

import itertools
import math

import torch


def numbers(sample: torch.Tensor) -> dict[tuple[int, ...], float]:
    """One sample ``[C, *spatial]`` as plain numbers."""
    return dict(zip(itertools.product(*map(range, sample.shape)), sample.double().flatten().tolist(), strict=True))


def noise(denoised: torch.Tensor, x: torch.Tensor, sigma: float) -> dict[tuple[int, ...], float]:
    """``e = (x - D) / sigma``, one number at a time."""
    d, x = numbers(denoised), numbers(x)
    return {i: (x[i] - d[i]) / sigma for i in d}


def tensor(values: dict[tuple[int, ...], float], like: torch.Tensor) -> torch.Tensor:
    """Back to a float64 tensor of ``like``'s shape."""
    return torch.tensor([values[i] for i in numbers(like)], dtype=torch.float64).reshape(like.shape)


def minus(a, b):
    return {i: a[i] - b[i] for i in a}


def dot(a, b):
    return math.fsum(a[i] * b[i] for i in a)


def cosine_reference(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def casg_reference(e_prompt, e_base, e_concepts) -> int:
    """``h* = argmax_k <g_k, g_p> / |g_k|``."""
    g_p = minus(e_prompt, e_base)
    best, at = -math.inf, -1
    for k, e_k in enumerate(e_concepts):
        g_k = minus(e_k, e_base)
        value = dot(g_k, g_p) / math.sqrt(dot(g_k, g_k))
        if value > best:
            best, at = value, k
    return at


def not_reference(d_prompt, d_base, d_concepts, w, strength):
    """``D_base + w (D_prompt - D_base - sum_k strength (D_k - D_base))``."""
    p, b, cs = numbers(d_prompt), numbers(d_base), [numbers(c) for c in d_concepts]
    return {i: b[i] + w * (p[i] - b[i] - sum(strength * (c[i] - b[i]) for c in cs)) for i in p}


def negative_reference(d_prompt, d_base, d_concept, w, strength):
    """CFG whose base is moved towards the concept."""
    p, b, c = numbers(d_prompt), numbers(d_base), numbers(d_concept)
    moved = {i: b[i] + strength * (c[i] - b[i]) for i in p}
    return {i: moved[i] + w * (p[i] - moved[i]) for i in p}


def sld_reference(e_p, e_b, e_s, nu, w, s_s, limit, s_m, beta, warm):
    """One step of SLD; returns guided noise and the new momentum."""
    out, after = {}, {}
    for i in e_p:
        difference = e_p[i] - e_s[i]
        phi = min(s_s * abs(difference), 1.0)
        mu = phi if difference < limit else 0.0
        gamma = mu * (e_s[i] - e_b[i]) + s_m * nu[i]
        after[i] = beta * nu[i] + (1 - beta) * gamma
        g = e_p[i] - e_b[i] - (gamma if warm else 0.0)
        out[i] = e_b[i] + w * g
    return out, after


def quantile_reference(values: list[float], q: float) -> float:
    """Quantile with linear interpolation between neighbours."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def sega_reference(e_p, e_b, e_concepts, nu, w, s_e, tau, s_m, beta, warm):
    """One step of SEGA taking concepts away; returns guided noise and the new momentum."""
    total = dict.fromkeys(e_p, 0.0)
    for e_k in e_concepts:
        psi = {i: -s_e * (e_k[i] - e_b[i]) for i in e_p}
        for channel in sorted({i[0] for i in e_p}):
            limit = quantile_reference([abs(psi[i]) for i in psi if i[0] == channel], tau)
            for i in psi:
                if i[0] == channel and abs(psi[i]) >= limit:
                    total[i] += psi[i]
    out, after = {}, {}
    for i in e_p:
        total[i] += s_m * nu[i]
        after[i] = beta * nu[i] + (1 - beta) * total[i]
        out[i] = e_b[i] + w * (e_p[i] - e_b[i]) + (total[i] if warm else 0.0)
    return out, after


def proxy_reference(steps) -> list[float]:
    """``P_j`` of SP-Guard from a list of (e_prompt, e_base, [e_s1, ...])."""
    count = len(steps[0][2])
    return [
        sum(cosine_reference(minus(p, b), minus(cs[j], b)) for p, b, cs in steps) / len(steps) for j in range(count)
    ]


def projected_cosine_reference(d_prompt, d_concept, d_neutrals) -> float:
    """Cosine of what neutral directions leave of both: ``v - N (N^T N)^-1 N^T v``, solved by elimination."""

    def rest(v):
        rows = [[dot(a, b) for b in d_neutrals] + [dot(a, v)] for a in d_neutrals]
        for i, row in enumerate(rows):
            for j, other in enumerate(rows):
                if j != i:
                    factor = other[i] / row[i]
                    rows[j] = [o - factor * r for o, r in zip(other, row, strict=True)]
        weights = [row[-1] / row[i] for i, row in enumerate(rows)]
        return {k: v[k] - sum(w * n[k] for w, n in zip(weights, d_neutrals, strict=True)) for k in v}

    return cosine_reference(rest(d_prompt), rest(d_concept))


def mask_reference(d_p, d_s, q, absolute=False, channelwise=False):
    """``M`` of SP-Guard, from the two directions."""
    places = sorted({i[1:] for i in d_p})
    channels = sorted({i[0] for i in d_p})
    psi = {}
    for place in places:
        a = {(c,): d_p[(c, *place)] for c in channels}
        b = {(c,): d_s[(c, *place)] for c in channels}
        value = cosine_reference(a, b)
        psi[place] = max(0.0, abs(value)) if absolute else max(0.0, value)
    groups = [[i for i in d_s if i[0] == c] for c in channels] if channelwise else [list(d_s)]
    out = dict.fromkeys(d_s, 0.0)
    for group in groups:
        limit = quantile_reference([abs(d_s[i]) for i in group], q)
        for i in group:
            if abs(d_s[i]) > limit:
                out[i] = 1 + psi[i[1:]]
    return out


def sp_guard_reference(e_p, e_b, e_s, p, w, strength, q, absolute=False, channelwise=False):
    """Guided noise of SP-Guard after measuring."""
    d_s = minus(e_s, e_b)
    m = mask_reference(minus(e_p, e_b), d_s, q, absolute, channelwise)
    out = {}
    for i in e_p:
        mu = strength * max(0.0, p) * m[i]
        gamma = -mu * (e_s[i] - e_b[i])
        out[i] = e_b[i] + w * (e_p[i] - e_b[i] + gamma)
    return out


def crg_reference(steps, w, strength, tau, weight):
    """CRG with one concept over several steps: list of ``(prompt, base, concept, sigma)`` in noise units, to noise."""
    gathered, last, out = 0.0, None, []
    for e_p, e_b, e_c, sigma in steps:
        d_p, d_c = minus(e_p, e_b), minus(e_c, e_b)
        away = minus(e_p, e_c)
        b = dot(d_p, d_p) - dot(away, away)
        if last is not None:
            gathered += b * math.log(last / sigma)
        last = sigma
        risk = weight / 2 * b + gathered
        omega = risk / (weight * dot(d_c, d_c)) - tau
        push = strength * omega if omega > 0 else 0.0
        out.append({i: e_b[i] + w * d_p[i] - push * d_c[i] for i in e_p})
    return out
