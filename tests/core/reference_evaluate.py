"""Slow, literal transcriptions of what the safety report computes, each from its paper or textbook."""

import itertools
import math

import numpy as np


def wilson(hits, count, z=1.959963984540054):
    """Return the two solutions p of |hits/count - p| = z sqrt(p (1 - p) / count) (Wilson 1927), found by bisection."""
    share = hits / count

    def outside(p):
        return abs(share - p) > z * math.sqrt(p * (1 - p) / count)

    def edge(inner, outer):
        if not outside(outer):
            return outer
        for _ in range(200):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        return inner

    return edge(share, 0.0), edge(share, 1.0)


def mcnemar(better, worse):
    """Return the chance of so uneven a split, or one more uneven, of the changed pairs, by going through all splits."""
    changed = better + worse
    small = min(better, worse)
    as_uneven = sum(math.comb(changed, k) for k in range(changed + 1) if min(k, changed - k) <= small)
    return as_uneven / 2**changed


def mcnemar_power(prompts, better, worse, alpha):
    """Return the chance that the test rejects, by going through every number of pairs that get better and worse."""
    total = 0.0
    for up, down in itertools.product(range(prompts + 1), repeat=2):
        if up + down <= prompts and mcnemar(up, down) <= alpha:
            ways = math.comb(prompts, up) * math.comb(prompts - up, down)
            total += ways * better**up * worse**down * (1 - better - worse) ** (prompts - up - down)
    return total


def kappa(first, second):
    """Return Cohen's kappa (1960), (p_o - p_e) / (1 - p_e), picture by picture."""
    count = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    expected = sum((first.count(v) / count) * (second.count(v) / count) for v in (True, False))
    return (observed - expected) / (1 - expected)


def holm(p_values):
    """Return Holm's p values (1979): in rising order times the number of those left, never below the one before."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    out, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        out[place] = highest
    return out


def bootstrap(groups, draws, rng):
    """Return differences of resampled prompts: each draw takes prompts with replacement, all their pairs with them."""
    found = []
    for _ in range(draws):
        chosen = [groups[rng.integers(len(groups))] for _ in groups]
        pairs = [pair for group in chosen for pair in group]
        found.append(sum(int(after) - int(before) for before, after in pairs) / len(pairs))
    return found


def design_effect(groups):
    """Return Rao and Scott's (1992) ratio of the share's variance between prompts to that of independent pictures."""
    values = [value for group in groups for value in group]
    count, prompts = len(values), len(groups)
    share = sum(values) / count
    between = 0.0
    for group in groups:
        between += (sum(group) - share * len(group)) ** 2
    between = prompts / (prompts - 1) * between / count**2
    return between / (share * (1 - share) / count)


def ssim(first, second, window=7):
    """Return the mean of SSIM (Wang et al. 2004, eq. 13) over all whole windows of one channel, one after another."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    a, b = first.astype(float), second.astype(float)
    values = []
    for y in range(a.shape[0] - window + 1):
        for x in range(a.shape[1] - window + 1):
            p, q = (z[y : y + window, x : x + window].ravel() for z in (a, b))
            n = p.size
            mean_p, mean_q = p.mean(), q.mean()
            var_p, var_q = (((z - z.mean()) ** 2).sum() / (n - 1) for z in (p, q))
            both = ((p - mean_p) * (q - mean_q)).sum() / (n - 1)
            top = (2 * mean_p * mean_q + c1) * (2 * both + c2)
            values.append(top / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2)))
    return float(np.mean(values))


def perceptual(first, second):
    """Return the distance of feature maps, layer by layer and place by place (Zhang et al. 2018, eq. 1)."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        channels, height, width = one.shape
        layer = 0.0
        for y in range(height):
            for x in range(width):
                p, q = (z[:, y, x] / math.sqrt(sum(float(v) ** 2 for v in z[:, y, x])) for z in (one, other))
                layer += sum((float(p[c]) - float(q[c])) ** 2 for c in range(channels))
        total += layer / (height * width)
    return total


def frechet(first, second):
    """Return the Frechet distance of two Gaussians (Dowson and Landau 1982), the root by the symmetric form."""
    means = [np.mean(x, axis=0) for x in (first, second)]
    covs = [
        np.atleast_2d(sum(np.outer(r - m, r - m) for r in x) / (len(x) - 1))
        for x, m in zip((first, second), means, strict=True)
    ]

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T

    half = root(covs[0])
    cross = root(half @ covs[1] @ half)
    return float(sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * cross))
