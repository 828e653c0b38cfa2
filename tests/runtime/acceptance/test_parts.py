"""The sample network, trtexec's texts, JetPack's tensorrt from outside, and a board's own words."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from board_texts import TRTEXEC_8 as LOG_8

from fr_edge.bundle.golden import read_golden
from fr_edge.graph.layers import weighted_nodes
from fr_edge.runtime.acceptance import disclosure
from fr_edge.runtime.acceptance.disclosure import machine_facts
from fr_edge.runtime.acceptance.engine_check import find_trtexec, parse_trtexec, run_trtexec
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.machine import backends
from fr_edge.runtime.machine.backends import system_tensorrt
from fr_edge.runtime.selftest import make_sample_bundle, sample_network


def test_the_sample_is_a_face_network_that_survives_int8(tmp_path: Path) -> None:
    model = sample_network(np.dtype(np.float32))
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Conv", "PRelu", "Add", "Flatten", "Gemm"}
    assert len(model.SerializeToString()) < 3_000_000
    assert model.SerializeToString() == sample_network(np.dtype(np.float32)).SerializeToString()
    bundle = make_sample_bundle(tmp_path / "sample.bundle")
    golden = read_golden(bundle)
    unit = golden.embeddings / np.linalg.norm(golden.embeddings, axis=1, keepdims=True)
    between = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    assert np.median(between) < 0.5  # another face's embedding would not pass for this one's
    result = verify(bundle, "int8", artifact="graph")
    assert result.verdict == "PASSED"
    assert 0.97 < result.cosine.min < 0.99999
    half = sample_network(np.dtype(np.float16))
    assert len(weighted_nodes(half)) == len(weighted_nodes(model)) == 37
    x = np.random.default_rng(0).normal(size=(1, 3, 112, 112)).astype(np.float32)
    full, small = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"face": x})[0].ravel()
        for m in (model, half)
    )
    assert full @ small / np.linalg.norm(full) / np.linalg.norm(small) > 0.9999


def test_trtexecs_medians_are_read(tmp_path: Path) -> None:
    assert parse_trtexec(LOG_8) == {
        "Latency": 2.08276,
        "Enqueue Time": 0.00634766,
        "H2D Latency": 0.0,
        "GPU Compute Time": 2.08,
    }
    assert parse_trtexec("[E] Engine could not be created") == {}
    plan, options = tmp_path / "a.plan", {"duration_s": 1, "device": 0, "compute_ms": 1.04}

    def tool(text: str, code: int) -> Path:
        path = tmp_path / f"trtexec{code}"
        path.write_text(f"#!/bin/sh\ncat <<'E'\n{text}E\nexit {code}\n")
        path.chmod(0o755)
        return path

    run = run_trtexec(tool(LOG_8, 0), plan, (1, 3, 112, 112), **options)
    assert (run.problem, run.compute_ratio) == ("", 0.5)
    assert not any(str(tmp_path) in option for option in run.command)
    run = run_trtexec(tool("[E] Error[1]: no memory\n", 1), plan, (1, 3, 112, 112), **options)
    assert "ended with 1: [E] Error[1]: no memory" in run.problem
    assert run.compute_ratio is None
    run = run_trtexec(tmp_path / "none", plan, (1, 3, 112, 112), **options)
    assert "did not run" in run.problem


def test_trtexec_is_found_where_jetpack_puts_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_trtexec(tmp_path) is None
    path = tmp_path / "usr/src/tensorrt/bin/trtexec"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_trtexec(tmp_path) == path


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")


def jetpack(root: Path, python: str) -> Path:
    package = root / "usr/lib" / python / "dist-packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '10.3.0'\n")
    return package.parent


def test_jetpacks_tensorrt_is_found_from_outside(no_tensorrt: None, tmp_path: Path) -> None:
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folder = jetpack(tmp_path, here)
    before = list(sys.path)
    with system_tensorrt(tmp_path) as note:
        assert sys.path == [*before, str(folder)]  # after the environment's own packages
        spec = importlib.util.find_spec("tensorrt")
        assert spec is not None
        assert spec.origin == str(folder / "tensorrt" / "__init__.py")
        assert "outside this virtual environment" in note
        assert "--system-site-packages" in note
    assert sys.path == before
    assert importlib.util.find_spec("tensorrt") is None


def test_another_pythons_tensorrt_is_named_not_loaded(no_tensorrt: None, tmp_path: Path) -> None:
    jetpack(tmp_path, "python3.6")
    with system_tensorrt(tmp_path) as note:
        assert "for python3.6, and this is python3." in note
        assert importlib.util.find_spec("tensorrt") is None
    with system_tensorrt(tmp_path / "usr") as note:
        assert note == ""


def test_an_installed_tensorrt_stays_the_one(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    jetpack(tmp_path, f"python{sys.version_info[0]}.{sys.version_info[1]}")
    before = list(sys.path)
    with system_tensorrt(tmp_path) as note:
        assert (note, sys.path) == ("", before)


def test_a_boards_own_words_are_kept(tmp_path: Path, monkeypatch: Any) -> None:
    """Recorded texts of an Orin Nano Super, and tools that go on until they are stopped."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\n")
    (tmp_path / "etc/nvpmodel.conf").write_text(
        "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "nvpmodel": "echo 'NV Power Mode: 15W'",
        "tegrastats": "while :; do echo 'RAM 2448/7620MB CPU [5%@1510]'; sleep 0.1; done",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr(disclosure, "_TOOL_S", 0.4)
    system = disclosure.examine_system()
    monkeypatch.setattr(disclosure, "examine_system", lambda: jetson_of(system))
    facts = machine_facts(tmp_path)
    assert facts["power_modes"] == {"0": "15W", "2": "MAXN_SUPER"}
    texts = facts["texts"]
    assert texts["nv_tegra_release"].startswith("# R36")
    assert texts["nvpmodel.conf"].count("POWER_MODEL") == 2
    assert "CPU_ONLINE" not in texts["nvpmodel.conf"]
    assert texts["nvpmodel"] == "NV Power Mode: 15W\n"
    assert texts["tegrastats"].startswith("RAM 2448/7620MB")
    assert facts["packages"]["numpy"] == np.__version__


def jetson_of(system: Any) -> Any:
    from dataclasses import replace

    return replace(system, jetson="NVIDIA Jetson Orin Nano Developer Kit")
