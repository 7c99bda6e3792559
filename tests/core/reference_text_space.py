"""The redirect in text space and the matching of states, written out literally and slowly."""


def safe_prompt(tokens, delta, gate, threshold, strength):
    """Per text: the states themselves below the threshold, else each channel plus strength times its change."""
    out = []
    for states, change, harm in zip(tokens, delta, gate, strict=True):
        if harm < threshold or strength == 0:
            out.append(states)
            continue
        moved = states.clone()
        for place in range(states.shape[0]):
            for channel in range(states.shape[1]):
                moved[place, channel] = float(states[place, channel]) + strength * float(change[place, channel])
        out.append(moved)
    return out


def cheapest_walk(cost):
    """Cost of the cheapest walk through a table from its first to its last pair that skips nothing, by trying all."""

    def walk(i, j):
        if i == 0 and j == 0:
            return float(cost[0][0])
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        return float(cost[i][j]) + min(walk(a, b) for a, b in before if a >= 0 and b >= 0)

    return walk(len(cost) - 1, len(cost[0]) - 1)
