"""`fr-edge inspect`: files, hashes, and the reports that judged earlier files."""

import json
from pathlib import Path
from typing import Any

import pytest

from fr_edge.cli.main import run

Captured = pytest.CaptureFixture[str]
ENGINE = "engines/onnxruntime-int8.onnx"


def inspect(bundle: Path, capsys: Captured) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["inspect", str(bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_a_report_of_another_engine_is_stale(bundle: Path, capsys: Captured) -> None:
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 0
    (report,) = (
        name for name in inspect(bundle, capsys)["files"] if name.startswith("reports/verify-int8")
    )
    assert inspect(bundle, capsys)["stale"] == {}
    assert run(["calibrate", str(bundle), "--faces", "synthetic:16x2@6", "-q"]) == 0
    stale = inspect(bundle, capsys)["stale"]
    assert list(stale) == [report]
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert f"calibrate removed {ENGINE}: model.int8.onnx has changed since" in text
    assert f"calibrate made stale {report}: {stale[report]}" in text
    assert "all hashes match" in text
    assert run(["build-engine", str(bundle), "--fp32", "--backend", "onnxruntime", "-q"]) == 0
    capsys.readouterr()
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "calibrate removed" not in text  # the last command removed nothing
    assert f"stale: {report}: " in text


def test_each_report_has_a_row(bundle: Path, capsys: Captured) -> None:
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 0
    (row,) = (r for r in inspect(bundle, capsys)["reports"] if r["kind"] == "verify")
    assert (row["verdict"], row["judged"], row["protocol"]) == ("PASSED", "engine", "golden")
    assert (row["backend"], row["stale"]) == ("onnxruntime", "")
    assert run(["inspect", str(bundle)]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.strip().endswith("current"))
    assert "PASSED" in line
    assert "golden faces" in line
    assert run(["calibrate", str(bundle), "--faces", "synthetic:16x2@6", "-q"]) == 0
    (row,) = (r for r in inspect(bundle, capsys)["reports"] if r["kind"] == "verify")
    assert row["stale"].startswith(ENGINE) or "changed" in row["stale"]


def test_a_changed_file_is_named(bundle: Path, capsys: Captured) -> None:
    (bundle / ENGINE).write_bytes(b"something else")
    assert run(["inspect", str(bundle)]) == 4
    error = capsys.readouterr().err
    assert ENGINE in error
    assert "run its stage again" in error


def test_an_onnx_file(network: Path, capsys: Captured) -> None:
    assert run(["inspect", str(network), "--layers"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("mini.onnx: ")
    assert "multiply-adds" in text
    assert "Gemm" in text
