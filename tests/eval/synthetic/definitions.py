"""Recall tasks read from their definition, one example at a time in plain Python."""

import random

import torch

from hybridlm.eval.synthetic.task import Examples
from hybridlm.lm.model.loss import IGNORE


def rows(examples: Examples):
    """Each example as the list of its tokens and the answers due, {position: id}."""
    for tokens, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        yield tokens, {i: label for i, label in enumerate(labels) if label != IGNORE}


def check_mqar(tokens, asked, *, V, K, passes=1, blank=False, gap=0):
    """Everything that Zoology's definition says of one example."""
    C = 2 * K * passes
    keys, values = tokens[: 2 * K : 2], tokens[1 : 2 * K : 2]
    assert tokens[:C] == tokens[: 2 * K] * passes
    assert len(set(keys)) == K and all(1 <= key <= V // 2 - 1 for key in keys)
    assert len(set(values)) == K and all(V // 2 <= value <= V - 1 for value in values)
    assert all(0 <= token < V for token in tokens)
    assert len(asked) == K and all(i >= C + gap and (i - C - gap) % 2 == 0 for i in asked)
    assert sorted(tokens[i] for i in asked) == sorted(keys)
    memory = dict(zip(keys, values, strict=True))
    assert all(memory[tokens[i]] == answer for i, answer in asked.items())
    if blank:
        assert all(token == 0 for i, token in enumerate(tokens) if i >= C and i not in asked)


def draw_mqar(rng: random.Random, *, V, L, K, a):
    """One example, drawn step by step as the definition says."""
    keys, values = rng.sample(range(1, V // 2), K), rng.sample(range(V // 2, V), K)
    tokens = [token for pair in zip(keys, values, strict=True) for token in pair]
    tokens += [0] * (L - 2 * K)
    slots = list(range((L - 2 * K) // 2))
    asked = {}
    for key, value in zip(keys, values, strict=True):
        slot = rng.choices(slots, [(i + 1) ** (a - 1) for i in slots])[0]
        slots.remove(slot)
        tokens[2 * K + 2 * slot] = key
        asked[2 * K + 2 * slot] = value
    return [token or rng.randrange(V) for token in tokens], asked


def zoology_forgetting(rng: random.Random, *, V, K, U):
    """Keys, values and answers as Zoology draws them: [(key, value)] as shown, {key: answer}."""
    keys, old = rng.sample(range(1, V // 2), K), rng.sample(range(V // 2, V), K)
    new = [rng.choice([value for value in range(V // 2, V) if value != old[j]]) for j in range(U)]
    updates = [(keys[k], value) for k, value in zip(rng.sample(range(K), U), new, strict=True)]
    first = list(zip(keys, old, strict=True))
    return first + updates, dict(first + updates)


def zoology_compositional(rng: random.Random, *, V, K):
    """Triplets as Zoology draws them: all pairs of two sets of keys, in random order, each with a value of its own."""
    third, side = V // 3, round(K**0.5)
    firsts, seconds = rng.sample(range(1, third), side), rng.sample(range(third, 2 * third), side)
    pairs = [(a, b) for a in firsts for b in seconds]
    rng.shuffle(pairs)
    return [(a, b, value) for (a, b), value in zip(pairs, rng.sample(range(2 * third, V), K), strict=True)]


def inclusion(weights: list[float], size: int) -> list[float]:
    """Probability of each index to be among `size` successive weighted draws without replacement, by enumeration."""
    total = [0.0] * len(weights)

    def draw(left: dict[int, float], probability: float, remaining: int) -> None:
        whole = sum(left.values())
        for i, weight in left.items() if remaining else ():
            share = probability * weight / whole
            total[i] += share
            draw({j: w for j, w in left.items() if j != i}, share, remaining - 1)

    draw(dict(enumerate(weights)), 1.0, size)
    return total


def certain(answers: list[int], vocab_size: int) -> torch.Tensor:
    """Logits of a model that is sure of these answers."""
    return torch.nn.functional.one_hot(torch.tensor(answers), vocab_size).float()
