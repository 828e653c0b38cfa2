"""What follows from two sets of embeddings: rates, mixed galleries, and the advice on both."""

import numpy as np
import pytest

from fr_edge.faces.sources import Faces
from fr_edge.metrics.comparison import VerificationComparison, compare_verification
from fr_edge.metrics.rates import compare_rates, few_impostors
from fr_edge.metrics.verification import all_pairs
from fr_edge.runtime.evaluation.gallery import gallery_advice
from fr_edge.runtime.evaluation.gates import overall_verdict
from fr_edge.runtime.evaluation.judgement import judge_gates
from fr_edge.runtime.evaluation.limits import Limits

DIM = 16


def _faces(people: int, images: int) -> Faces:
    labels = np.repeat(np.arange(people), images)
    keys = tuple(f"{label}/{i}" for i, label in enumerate(labels))
    return Faces("made up", keys, labels, lambda _: np.zeros((112, 112, 3), np.uint8))


def _old(faces: Faces, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    people = random.normal(size=(faces.identities, DIM))[faces.labels]
    return (people + 0.5 * random.normal(size=(len(faces), DIM))).astype(np.float32)


def _separate(
    old: np.ndarray, new: np.ndarray, faces: Faces, far: float = 1e-2
) -> VerificationComparison:
    measures = {("dark", "bright"): np.random.default_rng(1).random(len(faces), np.float32)}
    comparison = compare_verification(old, new, faces.labels, None, measures, far)
    assert comparison is not None
    return comparison


def test_mixed_pairs_by_a_plain_loop() -> None:
    faces = _faces(9, 3)
    old = _old(faces)
    new = (old + 0.2 * np.random.default_rng(2).normal(size=old.shape)).astype(np.float32)
    order = np.random.default_rng(3).permutation(len(faces))
    old, new, labels = old[order], new[order], faces.labels[order]
    mixed = all_pairs(old, labels, new)
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (old, new)]
    sums = {True: 0.0, False: 0.0}
    place = np.argsort(labels, kind="stable")  # the gallery's face comes first in label order
    for a in range(len(place)):
        for b in range(a + 1, len(place)):
            i, j = place[a], place[b]
            sums[labels[i] == labels[j]] += float(unit[0][i] @ unit[1][j])
    middles = -1 + 2 * (np.arange(len(mixed.genuine)) + 0.5) / len(mixed.genuine)
    assert mixed.genuine @ middles == pytest.approx(sums[True], abs=1e-3)
    assert mixed.impostor @ middles == pytest.approx(sums[False], abs=1e-3)


def test_a_turned_space_is_as_good_alone_and_useless_mixed() -> None:
    faces = _faces(60, 4)
    old = _old(faces)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(DIM, DIM)))
    comparison = _separate(old, (old @ turn).astype(np.float32), faces)
    assert abs(comparison.at(1e-2).delta or 0) < 0.01
    advice = gallery_advice(Limits(far=1e-2), comparison.mixed_gallery)
    assert advice is not None
    assert advice.verdict == "enrol again"
    close = _separate(old, (old * 1.01).astype(np.float32), faces)
    advice = gallery_advice(Limits(far=1e-2), close.mixed_gallery)
    assert advice is not None
    assert advice.verdict == "keep the gallery"
    assert advice.interval_95 is not None
    # The bound decides, not the point, which is a loss of nothing.
    low, high = advice.interval_95
    assert low < advice.delta == 0 < high
    strict = gallery_advice(Limits(far=1e-2, max_tar_drop=-low / 2), close.mixed_gallery)
    assert strict is not None
    assert strict.verdict == "cannot judge"
    assert advice.threshold == pytest.approx(close.at(1e-2).threshold.reference, abs=1e-3)


def test_a_kept_threshold_shows_what_it_costs() -> None:
    """An engine that pulls everybody together accepts strangers at the old threshold."""
    faces = _faces(60, 4)
    old = _old(faces)
    new = (old / np.linalg.norm(old, axis=1, keepdims=True) + 0.6 * np.eye(DIM)[0]).astype("f4")
    rate = _separate(old, new, faces).at(1e-2)
    assert rate.threshold_kept.far is not None
    assert rate.threshold_kept.far > 0.04
    assert rate.threshold.engine > rate.threshold.reference  # type: ignore[operator]
    assert rate.interval_95 is not None
    assert rate.interval_95.delta[0] <= rate.interval_95.delta[1]


def test_few_pairs_are_said() -> None:
    faces = _faces(10, 2)
    comparison = _separate(_old(faces), _old(faces), faces, far=1e-3)
    assert comparison.at(1e-3).reference is None
    assert comparison.at(1e-3).reason == "180 impostor pairs, 10,000 needed"
    assert "1,000 impostor pairs to be solid" in comparison.at(1e-2).low_confidence
    assert comparison.strata_rate is None
    assert gallery_advice(Limits(far=1e-3), comparison.mixed_gallery) is None
    assert any("20 needed" in note for note in comparison.notes)
    scores = all_pairs(_old(faces), faces.labels)
    assert few_impostors(scores.impostor_pairs, 0.5) == ""


def test_a_loss_within_the_limit_passes_and_beyond_it_fails() -> None:
    from fr_edge.metrics.rates import measure_drift
    from fr_edge.runtime.evaluation.reference import ReferenceCheck

    faces = _faces(60, 4)
    old = _old(faces)
    new = old + 0.5 * np.random.default_rng(5).normal(size=old.shape)
    new *= np.linalg.norm(old, axis=1, keepdims=True) / np.linalg.norm(new, axis=1, keepdims=True)
    new = new.astype(np.float32)  # as long as before: lengths have a gate of their own
    comparison, drift = _separate(old, new, faces), measure_drift(old, new, faces.keys)
    drop = -(comparison.at(1e-2).delta or 0)
    assert drop > 0.02
    interval = comparison.at(1e-2).interval_95
    assert interval is not None
    low, high = -interval.delta[1], -interval.delta[0]
    assert 0 < low < drop < high
    for limit, verdict in (
        (high + 0.001, "PASSED"),
        (drop, "CANNOT JUDGE"),
        (low - 0.001, "FAILED"),
    ):
        limits = Limits(min_cosine=-1, p1_cosine=-1, max_tar_drop=limit, far=1e-2)
        gates, _ = judge_gates(
            limits, "int8", ReferenceCheck("PyTorch", 1.0, drift), drift, comparison
        )
        assert overall_verdict(gate.verdict for gate in gates) == verdict


def test_rates_from_largest_to_smallest() -> None:
    faces = _faces(30, 3)
    scores = all_pairs(_old(faces), faces.labels)
    rates = compare_rates(scores, scores, (1e-3, 1e-1, 1e-2))
    assert [rate.far for rate in rates] == [1e-1, 1e-2, 1e-3]
    tars = [rate.reference for rate in rates]
    assert tars == sorted(tars, reverse=True)  # type: ignore[type-var]
    assert all(rate.delta == 0 for rate in rates)
