"""A loss that only some faces suffer is found, and found to be theirs."""

import numpy as np
import pytest

from fr_edge.faces.quality import measure_quality
from fr_edge.faces.synthetic.render import draw_face
from fr_edge.metrics.rates import compare_rates
from fr_edge.metrics.strata import compare_strata
from fr_edge.metrics.verification import all_pairs


def _faces(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 112, 112, 3), np.uint8)


def test_quality_says_dark_flat_and_blurred() -> None:
    face = _faces(1)
    dark, flat = face // 4, face // 8 + 100
    smooth = face.astype(np.float32)
    for axis in (1, 2):
        smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    plain, low, grey, soft = (
        measure_quality(np.asarray(f, np.uint8))[0] for f in (face, dark, flat, smooth)
    )
    assert low[0] < plain[0] / 3
    assert grey[1] < plain[1] / 4
    assert soft[2] < plain[2] / 2
    assert low[2] == pytest.approx(plain[2], rel=0.05)  # darkness alone is no blur


def test_quality_of_a_known_face() -> None:
    face = np.zeros((1, 112, 112, 3), np.uint8)
    face[:, :, ::2] = (255, 0, 0)  # red stripes one pixel wide: luma 76.245 and 0
    brightness, contrast, detail, *_ = measure_quality(face)[0]
    assert brightness == pytest.approx(76.245 / 2, rel=1e-4)
    assert contrast == pytest.approx(76.245 / 2, rel=1e-4)
    assert detail == pytest.approx(4, rel=1e-4)  # the Laplacian is -2 and +2 times the luma


def test_quality_says_small_and_turned() -> None:
    ahead = np.stack([draw_face(identity, 0) for identity in range(8)])
    small = ahead[:, 2::4, 2::4].repeat(4, axis=1).repeat(4, axis=2)
    size, shrunk = measure_quality(ahead)[:, 3], measure_quality(small)[:, 3]
    assert (size > 0.02).all()
    assert shrunk == pytest.approx(0, abs=1e-3)  # a face of 28 pixels holds all of it
    even = np.concatenate([ahead[:, :, :56], ahead[:, :, 55::-1]], axis=2)
    turned = np.roll(even, 12, axis=2)
    pose, pose_turned = measure_quality(even)[:, 4], measure_quality(turned)[:, 4]
    assert pose == pytest.approx(1, abs=1e-3)
    assert (pose_turned < 0.95).all()


def test_a_failure_on_dark_faces_only_is_found() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 4)
    old = (random.normal(size=(60, 32))[labels] + 0.5 * random.normal(size=(240, 32))).astype("f4")
    quality = np.ones((240, 5), np.float32)
    quality[:, :3] = random.uniform(50, 200, (240, 3))
    dark = quality[:, 0] <= np.percentile(quality[:, 0], 25)
    new = old + np.where(dark[:, None], 0.9, 0.02) * random.normal(size=old.shape)
    new = new.astype(np.float32)
    rate = compare_rates(all_pairs(old, labels), all_pairs(new, labels), (1e-2,))[0]
    found = compare_strata(old, new, labels, quality, rate)
    assert found[0].name == "dark"
    assert found[0].faces == dark.sum()
    assert found[0].drop is not None
    others = [s.drop for s in found if s.name not in ("dark",) and s.drop is not None]
    assert found[0].drop > max(others)
    assert found[0].p5 == min(s.p5 for s in found)
    # The figures by a plain loop.
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (old, new)]
    pairs = [(i, j) for i in range(240) for j in range(i + 1, 240) if labels[i] == labels[j]]
    touched = [(i, j) for i, j in pairs if dark[i] or dark[j]]
    assert found[0].pairs == len(touched)
    for side, threshold, value in (
        (0, rate.reference_threshold, found[0].reference),
        (1, rate.engine_threshold, found[0].engine),
    ):
        assert threshold is not None
        accepted = np.mean([unit[side][i] @ unit[side][j] >= threshold for i, j in touched])
        assert value == pytest.approx(accepted, abs=1e-9)


def test_few_pairs_give_no_tar() -> None:
    random = np.random.default_rng(2)
    old = random.normal(size=(40, 8)).astype(np.float32)
    labels = np.repeat(np.arange(20), 2)
    rate = compare_rates(all_pairs(old, labels), all_pairs(old, labels), (1e-1,))[0]
    for stratum in compare_strata(old, old, labels, random.random((40, 5)).astype("f4"), rate):
        assert stratum.pairs < 50
        assert stratum.drop is None
        assert stratum.to_json()["tar"]["delta"] is None
