"""d' against its formula, and the interval of a difference."""

from itertools import combinations

import numpy as np
import pytest

from fr_edge.metrics.decidability import (
    SAME_CONTRACT,
    d_prime,
    d_prime_lead,
    lead_in_errors,
    pair_sums,
    separates_better,
)


def reference_d_prime(embeddings: np.ndarray, labels: np.ndarray) -> float:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    genuine, impostor = [], []
    for a, b in combinations(range(len(unit)), 2):
        (genuine if labels[a] == labels[b] else impostor).append(float(unit[a] @ unit[b]))
    spread = (np.var(genuine) + np.var(impostor)) / 2
    return float((np.mean(genuine) - np.mean(impostor)) / np.sqrt(spread))


@pytest.mark.parametrize(("count", "dim", "people"), [(13, 5, 3), (40, 33, 9), (7, 2, 2)])
def test_d_prime_is_the_formula(count: int, dim: int, people: int) -> None:
    random = np.random.default_rng(count)
    embeddings = random.normal(size=(count, dim))
    labels = random.permutation(np.arange(count) % people)
    assert d_prime(pair_sums(embeddings.astype(np.float32), labels)) == pytest.approx(
        reference_d_prime(embeddings, labels), rel=1e-4
    )


def test_weights_count_identities_again() -> None:
    """A weight of 2 doubles an identity's genuine pairs, and its impostor pairs with the others."""
    random = np.random.default_rng(4)
    embeddings, labels = random.normal(size=(12, 6)).astype(np.float32), np.arange(12) // 3
    weights = np.array([2.0, 1, 1, 0])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, b = np.array(list(combinations(range(12), 2))).T
    scores, same = (unit[a] * unit[b]).sum(1), labels[a] == labels[b]
    share = weights[labels[a]] * np.where(same, 1, weights[labels[b]])
    means, spreads = [], []
    for kind in (same, ~same):
        means.append(np.average(scores[kind], weights=share[kind]))
        spreads.append(np.average((scores[kind] - means[-1]) ** 2, weights=share[kind]))
    expected = (means[0] - means[1]) / np.sqrt(sum(spreads) / 2)
    assert d_prime(pair_sums(embeddings, labels), weights) == pytest.approx(expected, rel=1e-4)


def test_a_lead_is_clear_or_not() -> None:
    random = np.random.default_rng(5)
    labels = np.arange(60) // 2
    people = random.normal(size=(30, 32))[labels]
    clear = pair_sums((people + random.normal(size=(60, 32)) * 0.4).astype(np.float32), labels)
    vague = pair_sums((people + random.normal(size=(60, 32)) * 1.5).astype(np.float32), labels)
    again = pair_sums((people + random.normal(size=(60, 32)) * 0.4).astype(np.float32), labels)
    assert d_prime_lead(clear, vague)[0] > 0
    low, high = d_prime_lead(clear, again)
    assert low < 0 < high
    assert separates_better(clear, vague)
    assert not separates_better(clear, again)
    assert lead_in_errors(clear, vague) > 1.96
    assert abs(lead_in_errors(again, clear)) < 1.96
    assert lead_in_errors(vague, clear) < -1.96


def test_a_lead_is_measured_in_its_errors() -> None:
    random = np.random.default_rng(11)
    labels = np.arange(60) // 2
    people = random.normal(size=(30, 32))[labels]
    noise = random.normal(size=(2, 60, 32))
    leads = []
    for level in (0.42, 0.46, 0.5, 0.6, 0.8):
        best = pair_sums((people + noise[0] * 0.4).astype(np.float32), labels)
        other = pair_sums((people + noise[1] * level).astype(np.float32), labels)
        low, high = d_prime_lead(best, other)
        errors = ((low + high) / 2 - SAME_CONTRACT * d_prime(other)) / ((high - low) / 3.92)
        leads.append(errors)
        assert lead_in_errors(best, other) == pytest.approx(errors)
        assert separates_better(best, other) == (errors > 1.96)
    assert min(leads) < 0 < 1.96 < max(leads)


def test_a_certain_lead_of_nothing_is_no_better() -> None:
    """(x - 127.5) / 127.5 and / 128: every draw of people shows the lead, and it means nothing."""
    random = np.random.default_rng(6)
    labels = np.arange(80) // 2
    people = random.normal(size=(40, 32))[labels]
    noise = random.normal(size=(80, 32))
    best, other = (
        pair_sums((people + noise * level).astype(np.float32), labels) for level in (0.4, 0.402)
    )
    assert d_prime_lead(best, other)[0] > 0
    assert not separates_better(best, other)
    strangers = pair_sums(noise.astype(np.float32), labels)
    assert not separates_better(strangers, best)
    assert lead_in_errors(strangers, best) == -np.inf
