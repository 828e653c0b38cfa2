"""Worsened copies and groups: what they are, and what the certificate says of them."""

from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import FacesError
from fr_edge.faces.quality import KINDS, degraded, measure_quality
from fr_edge.faces.sources import Faces
from fr_edge.metrics.rates import compare_rates
from fr_edge.metrics.strata import compare_worsened, read_groups
from fr_edge.metrics.verification import all_pairs
from fr_edge.runtime.evaluation.verify import verify


def test_copies_are_worse_in_their_own_way(people: Faces) -> None:
    picks = [40, 3, 17]
    plain = np.stack([people.read(i) for i in picks])
    brightness, _, detail, *_ = measure_quality(plain).T
    seen = {}
    for kind in KINDS:
        copies = degraded(people, picks, kind)
        assert list(copies.keys) == [people.keys[i] for i in picks]
        pixels = next(copies.batches(3))
        assert pixels.dtype == np.uint8
        assert (pixels == next(copies.batches(3))).all()
        assert np.abs(pixels.astype(int) - plain).mean() > 0.5
        seen[kind] = measure_quality(pixels).T
    small, blurred, noisy, dark = seen.values()
    assert (small[2] < detail).all()
    assert (blurred[2] < detail).all()
    assert (noisy[2] > detail).all()
    assert dark[0] == pytest.approx(brightness / 4, rel=0.15)


def test_figures_of_worsened_probes_by_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    old = (random.normal(size=(30, 16))[labels] + 0.4 * random.normal(size=(120, 16))).astype("f4")
    new = (old + 0.1 * random.normal(size=old.shape)).astype("f4")
    picks = [5, 0, 77, 118, *range(20, 60)]
    worse = [(side[picks] + 0.5 * random.normal(size=(44, 16))).astype("f4") for side in (old, new)]
    rate = compare_rates(all_pairs(old, labels), all_pairs(new, labels), (1e-2,))[0]
    found = compare_worsened("x", (old, new), (worse[0], worse[1]), picks, labels, rate)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    pairs = [
        (p, j) for p, i in enumerate(picks) for j in range(120) if i != j and labels[i] == labels[j]
    ]
    assert found.pairs == len(pairs) == 44 * 3
    for side, threshold, tar in (
        (0, rate.reference_threshold, found.reference),
        (1, rate.engine_threshold, found.engine),
    ):
        clean = (old, new)[side]
        hits = [cosine(worse[side][p], clean[j]) >= threshold for p, j in pairs]
        assert tar == pytest.approx(np.mean(hits))
    assert found.min == pytest.approx(min(map(cosine, *worse)), abs=1e-6)


def test_the_certificate_holds_groups_and_copies(mini: Path, people: Faces, tmp_path: Path) -> None:
    rows = [f"{key},{'odd' if i % 2 else 'even'}" for i, key in enumerate(people.keys)]
    (tmp_path / "g.csv").write_text("path,group\n" + "\n".join(rows) + "\nelse/where,odd\n")
    report = verify(
        mini,
        "int8",
        artifact="graph",
        faces=people,
        groups=tmp_path / "g.csv",
        degrade=True,
        far=0.1,
        max_stratum_drop=0.9,
    ).to_json()
    named = {stratum["name"]: stratum for stratum in report["strata"]}
    assert named["odd"]["faces"] == named["even"]["faces"] == 24
    assert [stratum["name"] for stratum in report["degraded"]] == list(KINDS)
    assert all(stratum["pairs"] == 48 * 3 for stratum in report["degraded"])
    gate = report["gates"][-1]
    worst = max(
        -s["tar"]["delta"]
        for s in report["strata"] + report["degraded"]
        if s["tar"]["delta"] is not None
    )
    assert gate["value"] == pytest.approx(worst, abs=2e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,kind\na,b\n", "expected path,group"), ("path,group\nx,y\n", "none of the 2 faces")],
)
def test_lists_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(FacesError, match=message):
        read_groups(tmp_path / "g.csv", ("a/1", "a/2"))
    with pytest.raises(FacesError, match="no list"):
        read_groups(tmp_path / "none.csv", ("a/1",))
