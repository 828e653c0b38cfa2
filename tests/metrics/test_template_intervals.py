"""Intervals of templates: the people that genuine pairs show, against those that are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fr_edge.metrics.intervals import rate_intervals
from fr_edge.metrics.score_intervals import score_interval
from fr_edge.metrics.template_intervals import template_intervals
from fr_edge.metrics.verification import all_pairs, cosines, tar_at_far

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from interval_populations import SCENARIOS, draw


def test_linked_templates_are_people() -> None:
    """All pairs of faces, as if each were a template: the intervals of people whose names are known."""
    sample = draw(40, SCENARIOS["uneven"], np.random.default_rng(0))
    labels, fars = sample.labels, (1e-2, 1e-3, 1e-6)
    first, second = np.triu_indices(len(labels), 1)
    random = np.random.default_rng(1)
    order, numbers = random.permutation(len(first)), random.permutation(len(labels))
    first, second = first[order], second[order]
    scores = cosines(sample.old[first], sample.old[second])
    same = labels[first] == labels[second]
    intervals = template_intervals(scores, same, numbers[first], numbers[second], fars)
    counted = all_pairs(sample.old, labels)
    known = rate_intervals(sample.old, labels, counted, fars).tar
    assert set(intervals) == set(known) == {1e-2, 1e-3}
    for far, ends in known.items():
        assert intervals[far] == pytest.approx(ends, abs=2e-3)
        tar = tar_at_far(counted, far) or 0.0
        independent = score_interval(tar, 1 / same.sum())
        assert np.ptp(intervals[far]) > 2 * np.ptp(independent)


def test_few_people_give_no_interval() -> None:
    """Three genuine pairs in a chain are of one person, however many templates there are."""
    random = np.random.default_rng(0)
    first, second = random.integers(0, 60, (2, 3000))
    chain = np.arange(40) + 60  # 61 ... 100 all linked
    first, second = np.concatenate([first, chain]), np.concatenate([second, chain + 1])
    same = np.arange(len(first)) >= 3000
    scores = random.random(len(first)) + same
    assert template_intervals(scores, same, first, second, (1e-2,)) == {}
    apart = np.where(same, first + 1000 * np.arange(len(first)), first)
    ends = np.where(same, apart + 1, second)
    kept = np.unique(np.concatenate([apart, ends]), return_inverse=True)[1]
    assert set(template_intervals(scores, same, kept[: len(first)], kept[len(first) :], (1e-2,)))
