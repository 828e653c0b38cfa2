"""The table comes back as it was written, or not at all."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted import fit

from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.table import read_table, table_to_json
from fr_edge.errors import BundleError


@pytest.fixture
def written(model: onnx.ModelProto, histograms: dict[str, Histogram], tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    path.write_text(table_to_json(fit(model, histograms)))
    return path


def test_round_trip(
    written: Path, model: onnx.ModelProto, histograms: dict[str, Histogram]
) -> None:
    table, back = fit(model, histograms), read_table(written)
    assert back.ranges == table.ranges
    assert table_to_json(back) == written.read_text()
    for name, scale in table.scales.items():
        np.testing.assert_allclose(back.scales[name], scale, rtol=1e-6)


def test_edited_by_hand(written: Path) -> None:
    data = json.loads(written.read_text())
    data["ranges"][next(iter(data["ranges"]))] *= 2
    written.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="edited"):
        read_table(written)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 3}', "\x00", '{"schema": 3, "a": 1}']
)
def test_damaged_or_of_another_time(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(BundleError):
        read_table(tmp_path / "t.json")


def test_a_table_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"schema": 2, "ranges": {}, "centres": {}, "digest": ""}')
    with pytest.raises(BundleError, match="schema 2, expected 3") as caught:
        read_table(tmp_path / "t.json")
    assert "fr-edge calibrate" in caught.value.hint


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        read_table(tmp_path / "none.json")
