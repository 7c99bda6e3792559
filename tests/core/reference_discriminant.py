"""Formulas of the discriminant and of the gate made of two, one text and one state at a time."""

import math


def _whitened(found, states):
    """u for each state, the whitened unit vector."""
    mean, whiten = found.mean.tolist(), found.whiten.tolist()
    units = []
    for state in states:
        centred = [float(value) - middle for value, middle in zip(state, mean, strict=True)]
        white = [sum(value * row[j] for value, row in zip(centred, whiten, strict=True)) for j in range(len(whiten[0]))]
        size = math.sqrt(sum(value * value for value in white))
        units.append([value / size for value in white])
    return units


def _scores(found, units, k):
    """w . u for each u."""
    weights = found.weights[:, k].tolist()
    return [sum(value * weight for value, weight in zip(unit, weights, strict=True)) for unit in units]


def logits(found, texts):
    """Per text and category: bias + the largest w . u."""
    kinds = range(found.weights.shape[1])
    read = [_whitened(found, states) for states in texts]
    return [[float(found.bias[k]) + max(_scores(found, units, k)) for k in kinds] for units in read]


def loss(found, texts, labels, counted, config):
    """Per category the mean cross-entropy of harmful texts plus that of harmless ones, and the penalty.

    The logit that is fitted is bias + s log(mean over states of exp(w . u / s)).
    """
    total = config.penalty * float(found.weights.square().sum())
    read = [_whitened(found, states) for states in texts]
    for k in range(labels.shape[1]):
        for kind in (1, 0):
            places = [n for n in range(len(texts)) if labels[n, k] == kind and counted[n, k]]
            for n in places:
                parts = [math.exp(part / config.sharpness) for part in _scores(found, read[n], k)]
                logit = float(found.bias[k]) + config.sharpness * math.log(sum(parts) / len(parts))
                chance = 1 / (1 + math.exp(-logit))
                total -= math.log(chance if kind else 1 - chance) / len(places)
    return total


def excess(gate, states, pooled):
    """Of one text per category: the sum of both logits' distances from the harmless mean, in standard deviations."""
    size = math.sqrt(sum(float(value) ** 2 for value in pooled))
    unit = [float(value) / size for value in pooled]
    rows = (logits(gate.parts[0], [states])[0], logits(gate.parts[1], [[unit]])[0])
    return [
        sum((row[k] - float(gate.mean[part, k])) / float(gate.std[part, k]) for part, row in enumerate(rows))
        for k in range(len(gate.categories))
    ]
