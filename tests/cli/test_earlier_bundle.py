"""A bundle that an earlier fr-edge made opens and goes on.

`bundle_of_2261559.tar.gz` was written by the code of that commit, from tests/networks.py's network
with 16 outputs: export with two golden faces, calibrate, build-engine --int8, verify.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fr_edge import embed, open_bundle, open_session
from fr_edge.bundle.golden import read_golden
from fr_edge.cli.main import run
from fr_edge.errors import BundleError, MachineError

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("bundle_of_2261559.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v1.bundle"


def test_its_files_are_read(earlier: Path) -> None:
    bundle = open_bundle(earlier, check="all")
    golden = read_golden(bundle)
    with open_session(bundle, "fp32", artifact="graph") as session:
        np.testing.assert_allclose(session.embed(golden.faces), golden.embeddings, atol=1e-4)


def test_its_reports_are_shown_as_stale(earlier: Path, capsys: Captured) -> None:
    assert run(["inspect", str(earlier), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == []
    assert document["stale"]["reports/verify-int8.json"].startswith("an earlier fr-edge")


def test_its_engine_opens_or_the_remedy_is_named(earlier: Path) -> None:
    faces, shape, hint = np.zeros((1, 112, 112, 3), np.uint8), None, ""
    try:
        shape = embed(earlier, faces, "int8", "onnxruntime").shape
    except (BundleError, MachineError) as error:  # built by another onnxruntime
        hint = error.hint
    assert shape == (1, 16) or "build-engine" in hint


def test_its_next_stages_run(earlier: Path, capsys: Captured) -> None:
    assert run(["calibrate", str(earlier), "--faces", "synthetic:8x2@9", "-q"]) == 0
    for line in (["build-engine", "--int8", "--backend", "onnxruntime"], ["verify"], ["report"]):
        assert run([line[0], str(earlier), *line[1:], "-q"]) == 0
    assert "PASSED" in capsys.readouterr().out


def test_a_bundle_of_another_schema_is_refused_with_the_remedy(
    earlier: Path, capsys: Captured
) -> None:
    manifest = json.loads((earlier / "bundle.json").read_text())
    (earlier / "bundle.json").write_text(json.dumps({**manifest, "schema": 99}))
    assert run(["inspect", str(earlier)]) == 4
    error = capsys.readouterr().err
    assert "schema 99" in error
    assert "upgrade fr-edge" in error
