"""Worsened copies and groups: what they are, and what the certificate says of them."""

from pathlib import Path

import pytest

from fr_edge.documents import to_builtins
from fr_edge.faces.quality import DEGRADATIONS
from fr_edge.faces.sources import Faces
from fr_edge.runtime.evaluation.verify import verify


def test_the_certificate_holds_groups_and_copies(mini: Path, people: Faces, tmp_path: Path) -> None:
    rows = [f"{key},{'odd' if i % 2 else 'even'}" for i, key in enumerate(people.keys)]
    (tmp_path / "g.csv").write_text("path,group\n" + "\n".join(rows) + "\nelse/where,odd\n")
    report = to_builtins(
        verify(
            mini,
            "int8",
            artifact="graph",
            faces=people,
            groups=tmp_path / "g.csv",
            degrade=True,
            far=0.1,
            max_stratum_drop=0.9,
        )
    )
    named = {stratum["name"]: stratum for stratum in report["strata"]}
    assert named["odd"]["faces"] == named["even"]["faces"] == 24
    assert [stratum["name"] for stratum in report["degraded"]] == list(DEGRADATIONS)
    assert all(stratum["pairs"] == 48 * 3 for stratum in report["degraded"])
    gate = report["gates"][-1]
    worst = max(
        -s["tar"]["delta"]
        for s in report["strata"] + report["degraded"]
        if s["tar"]["delta"] is not None
    )
    assert gate["value"] == pytest.approx(worst, abs=2e-6)
