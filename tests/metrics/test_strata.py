"""A loss that only some faces suffer is strata, and strata to be theirs."""

import numpy as np
import pytest

from fr_edge.metrics.rates import compare_rates
from fr_edge.metrics.score_intervals import student_t
from fr_edge.metrics.strata import compare_degraded, compare_strata
from fr_edge.metrics.verification import all_pairs


def test_a_failure_on_dark_faces_only_is_found() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 4)
    old = (random.normal(size=(60, 32))[labels] + 0.5 * random.normal(size=(240, 32))).astype("f4")
    brightness, contrast, sharpness = random.uniform(50, 200, (240, 3)).astype(np.float32).T
    measures = {
        ("dark", "bright"): brightness,
        ("flat", "contrasty"): contrast,
        ("blurred", "sharp"): sharpness,
        ("small", "large"): np.ones(240, np.float32),  # no quarters where all are equal
    }
    dark = brightness <= np.percentile(brightness, 25)
    new = old + np.where(dark[:, None], 0.9, 0.02) * random.normal(size=old.shape)
    new = new.astype(np.float32)
    rate = compare_rates(all_pairs(old, labels), all_pairs(new, labels), (1e-2,))[0]
    strata = compare_strata(old, new, labels, measures, rate)
    assert strata[0].name == "dark"
    assert strata[0].faces == dark.sum()
    assert strata[0].drop is not None
    others = [s.drop for s in strata if s.name not in ("dark",) and s.drop is not None]
    assert strata[0].drop > max(others)
    assert strata[0].cosine.p5 == min(s.cosine.p5 for s in strata)
    # The figures by a plain loop.
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (old, new)]
    pairs = [(i, j) for i in range(240) for j in range(i + 1, 240) if labels[i] == labels[j]]
    touched = [(i, j) for i, j in pairs if dark[i] or dark[j]]
    assert strata[0].pairs == len(touched)
    for side, threshold, value in (
        (0, rate.threshold.reference, strata[0].tar.reference),
        (1, rate.threshold.engine, strata[0].tar.engine),
    ):
        assert threshold is not None
        accepted = np.mean([unit[side][i] @ unit[side][j] >= threshold for i, j in touched])
        assert value == pytest.approx(accepted, abs=1e-9)


def test_few_pairs_give_no_tar() -> None:
    random = np.random.default_rng(2)
    old = random.normal(size=(40, 8)).astype(np.float32)
    labels = np.repeat(np.arange(20), 2)
    rate = compare_rates(all_pairs(old, labels), all_pairs(old, labels), (1e-1,))[0]
    measures = {("dark", "bright"): random.random(40, np.float32)}
    for stratum in compare_strata(old, old, labels, measures, rate):
        assert stratum.pairs < 50
        assert stratum.drop is None
        assert stratum.tar.delta is None


def test_figures_of_degraded_probes_by_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    old = (random.normal(size=(30, 16))[labels] + 0.4 * random.normal(size=(120, 16))).astype("f4")
    new = (old + 0.1 * random.normal(size=old.shape)).astype("f4")
    picks = [5, 0, 77, 118, *range(20, 60)]
    degraded = [
        (side[picks] + 0.5 * random.normal(size=(44, 16))).astype("f4") for side in (old, new)
    ]
    rate = compare_rates(all_pairs(old, labels), all_pairs(new, labels), (1e-2,))[0]
    stratum = compare_degraded("x", (old, new), (degraded[0], degraded[1]), picks, labels, rate)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    pairs = [
        (p, j) for p, i in enumerate(picks) for j in range(120) if i != j and labels[i] == labels[j]
    ]
    assert stratum.pairs == len(pairs) == 44 * 3
    for side, threshold, tar in (
        (0, rate.threshold.reference, stratum.tar.reference),
        (1, rate.threshold.engine, stratum.tar.engine),
    ):
        clean = (old, new)[side]
        hits = [cosine(degraded[side][p], clean[j]) >= threshold for p, j in pairs]
        assert tar == pytest.approx(np.mean(hits))
    assert stratum.cosine.min == pytest.approx(min(map(cosine, *degraded)), abs=1e-6)


def test_thresholds_that_stay_leave_a_stratum_more_freedom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four degrees of freedom for each effective person; the change over all faces has two."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(24), [12, 12, *[3] * 22])
    old = random.normal(size=(24, 32))[labels] + 0.7 * random.normal(size=(len(labels), 32))
    new = old + 0.5 * random.normal(size=old.shape)
    old, new = old.astype(np.float32), new.astype(np.float32)
    rate = compare_rates(all_pairs(old, labels), all_pairs(new, labels), (1e-2,))[0]

    def half() -> float:
        everyone = {"everyone": np.ones(len(labels), bool)}
        tar = compare_strata(old, new, labels, {}, rate, everyone)
        interval = next(stratum.tar for stratum in tar if stratum.name == "everyone")
        assert interval.interval_95 is not None
        assert interval.delta is not None
        assert interval.delta < 0  # so the upper end has no room for more changes
        return interval.interval_95[1] - interval.delta

    pairs = np.array([66, 66, *[3] * 22])
    weights = pairs / pairs.sum()
    effective = (weights**2).sum() ** 2 / (weights**4).sum()
    four = half()
    monkeypatch.setattr("fr_edge.metrics.strata._FREEDOM_TIMES", 2)
    expected = student_t(int(4 * effective)) / student_t(int(2 * effective))
    assert four / half() == pytest.approx(expected, rel=1e-9)
