"""The search keeps as little in float as the budget asks for, and goes on after a kill."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.mixed_precision import (
    SearchLog,
    bisect_float_layers,
    rank_layers,
)
from fr_edge.errors import GateFailed
from fr_edge.metrics.rates import EmbeddingLoss, compare_embeddings

BASE = compare_embeddings(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), np.arange(4))


def with_cosine(minimum: float) -> EmbeddingLoss:
    return replace(BASE, cosine=replace(BASE.cosine, min=minimum))


@pytest.mark.parametrize("needed", [1, 2, 5, 11])
@pytest.mark.parametrize("count", [12, 40])
def test_the_least_float_is_found_in_few_trials(needed: int, count: int) -> None:
    tried = []

    def judge(k: int) -> EmbeddingLoss:
        tried.append(k)
        return with_cosine(0.98 if k >= needed else 0.9)

    assert bisect_float_layers(count, judge, Budget(min_cosine=0.97)) == needed
    assert len(tried) <= 2 + np.log2(count)


@pytest.mark.parametrize("count", [1, 9])
def test_what_nothing_holds_is_said(count: int) -> None:
    with pytest.raises(GateFailed, match=r"no assignment holds cosine >= 0.97.*cosine 0.9"):
        bisect_float_layers(count, lambda _: with_cosine(0.9), Budget(min_cosine=0.97))


def test_layers_that_cost_most_per_time_saved_go_first() -> None:
    errors = {"a": 1.0, "b": 0.2, "c": 0.4}
    assert rank_layers(errors, {"a": 10.0, "b": 1.0, "c": 5.0}) == ["b", "a", "c"]


def test_layers_that_int8_does_not_speed_up_go_before_all() -> None:
    errors = {"a": 1.0, "b": 0.0, "c": 0.4}
    assert rank_layers(errors, {"a": 1.0, "b": -0.1, "c": 0.0}) == ["c", "b", "a"]


def test_the_log_remembers_under_its_key_alone(tmp_path: Path) -> None:
    path, done = tmp_path / ".b", []

    def work() -> int:
        done.append(1)
        return len(done)

    assert SearchLog(path, "k").recall("a", int, work) == 1
    assert SearchLog(path, "k").recall("a", int, work) == 1
    assert SearchLog(path, "other").recall("a", int, work) == 2
    path.write_text("{half")
    assert SearchLog(path, "other").recall("a", int, work) == 3
