"""The IJB protocol on a small folder: figures, flags, refusals."""

from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.documents import to_builtins
from fr_edge.errors import FacesError
from fr_edge.faces.ijb import is_ijb, read_ijb
from fr_edge.runtime.evaluation.evaluate import evaluate_ijb


def test_the_whole_protocol(mini: Path, ijb_folder: Path) -> None:
    assert is_ijb(ijb_folder)
    found = to_builtins(evaluate_ijb(mini, read_ijb(ijb_folder), "fp32", artifact="graph"))
    assert found["protocol"]["flags"] == "N1D1F1"
    assert found["pairs"] == {"genuine": 5, "impostor": 20}
    assert found["tar_at_far"]["1e-1"] == 1.0  # five patterns, nothing alike
    # 20 impostor pairs do not resolve FAR 1e-2, and hold 1e-1 by two.
    assert found["tar_at_far"]["1e-2"] is None
    assert any("FAR 1e-1 needs 100" in note for note in found["notes"])
    assert found["report"].startswith("reports/evaluate-fp32-ijb-N1D1F1-")
    assert found["report"] in open_bundle(mini)


def test_an_image_that_cannot_be_decoded(mini: Path, ijb_folder: Path) -> None:
    (ijb_folder / "loose_crop" / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    ijb = read_ijb(ijb_folder)
    with pytest.raises(FacesError, match="3.jpg is not an image"):
        evaluate_ijb(mini, ijb, "fp32", artifact="graph")
