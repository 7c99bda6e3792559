"""Formulas of the discriminant and of the gate made of two, one text and one state at a time."""

import math


def _scores(found, states, k):
    """w . u for each state, u the whitened unit vector."""
    parts = []
    for state in states:
        centred = [float(state[i]) - float(found.mean[i]) for i in range(len(state))]
        white = [
            sum(value * float(found.whiten[i, j]) for i, value in enumerate(centred))
            for j in range(found.whiten.shape[1])
        ]
        size = math.sqrt(sum(value * value for value in white))
        parts.append(sum(value / size * float(found.weights[j, k]) for j, value in enumerate(white)))
    return parts


def logits(found, texts):
    """Per text and category: bias + the largest w . u."""
    kinds = range(found.weights.shape[1])
    return [[float(found.bias[k]) + max(_scores(found, states, k)) for k in kinds] for states in texts]


def loss(found, texts, labels, counted, config):
    """Per category the mean cross-entropy of harmful texts plus that of harmless ones, and the penalty.

    The logit that is fitted is bias + s log(mean over states of exp(w . u / s)).
    """
    total = config.penalty * float(found.weights.square().sum())
    for k in range(labels.shape[1]):
        for kind in (1, 0):
            places = [n for n in range(len(texts)) if labels[n, k] == kind and counted[n, k]]
            for n in places:
                parts = [math.exp(part / config.sharpness) for part in _scores(found, texts[n], k)]
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
