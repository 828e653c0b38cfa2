"""Figures that conditions spoiled are INVALID, and say why."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.golden import read_golden
from fr_edge.documents import to_builtins
from fr_edge.errors import UsageError
from fr_edge.runtime.benchmark import workload as module
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.benchmark.result import (
    BenchmarkInterrupted,
    BenchmarkResult,
    BenchmarkRun,
    judge_performance,
    saturation_batch,
    summarize_run,
)
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import latencies_of
from fr_edge.runtime.benchmark.timing import Timing, time_runs
from fr_edge.runtime.benchmark.workload import Workload, ready_batches, turns
from fr_edge.runtime.evaluation.limits import BenchmarkLimits
from fr_edge.runtime.machine.energy import FaceEnergy, energy
from fr_edge.runtime.machine.monitor import SensorTrace
from fr_edge.runtime.machine.sensors import Reading


def _run(latencies: np.ndarray, **changes: object) -> BenchmarkRun:
    parts = {"steady": True, "cpu_wait_share": 0.01, "duration_s": 10.0, "lowest": 1.0, **changes}
    stopped = bool(parts.get("interrupted", False))
    share = parts["cpu_wait_share"]
    timing = Timing(latencies_of(latencies), 0.6, bool(parts["steady"]), share, stopped)  # type: ignore[arg-type]
    return summarize_run(Setting(4), timing, float(parts["duration_s"]), float(parts["lowest"]))  # type: ignore[arg-type]


QUIET = np.random.default_rng(1).normal(8, 0.1, 1250)


def test_quiet_figures_are_valid_and_right() -> None:
    report = to_builtins(_run(QUIET))
    assert (report["verdict"], report["reasons"]) == ("VALID", [])
    for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert report["latency_ms"][name] == pytest.approx(np.percentile(QUIET, q), abs=1e-4)
    assert report["latency_ms"]["mean"] == pytest.approx(QUIET.mean(), abs=1e-4)
    low, high = report["interval_95_ms"]["p50"]
    assert low < report["latency_ms"]["p50"] < high
    assert high - low < 0.1
    assert report["throughput_per_s"] == pytest.approx(4 / QUIET.mean() * 1000, rel=1e-4)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (_run(QUIET[:60]), "too few runs: 60"),
        (_run(QUIET, duration_s=0.5), "too short"),
        (_run(QUIET * np.random.default_rng(2).uniform(0.6, 1.4, 1250)), "too noisy"),
        (_run(np.where(np.arange(1250) < 900, QUIET, QUIET * 1.5)), "the speed moved"),
        (_run(QUIET, cpu_wait_share=0.2), "other load"),
        (_run(QUIET, steady=False), "not steady"),
        (_run(QUIET, lowest=0.98), "embeddings moved"),
        (_run(QUIET - 9), "clock jumped"),
        (_run(QUIET, interrupted=True), "stopped before its time"),
    ],
)
def test_spoiled_figures_say_why(run: BenchmarkRun, reason: str) -> None:
    report = to_builtins(run)
    assert report["verdict"] == "INVALID"
    assert any(reason in found for found in report["reasons"])


def _energy(interval: tuple[float, float] | None) -> FaceEnergy:
    return FaceEnergy("VDD_IN", 9000.0, 3000.0, 60, 12.0, interval, 18.0)


@pytest.mark.parametrize(
    ("field", "limits", "verdict"),
    [
        ({"throughput_interval_95": (480.0, 520.0)}, {"min_throughput": 470.0}, "PASSED"),
        ({"throughput_interval_95": (480.0, 520.0)}, {"min_throughput": 490.0}, "CANNOT JUDGE"),
        ({"throughput_interval_95": (480.0, 520.0)}, {"min_throughput": 530.0}, "FAILED"),
        ({"throughput_interval_95": None}, {"min_throughput": 470.0}, "CANNOT JUDGE"),
        ({"energy": _energy((11.0, 13.0))}, {"max_energy_mj": 14.0}, "PASSED"),
        ({"energy": _energy((11.0, 13.0))}, {"max_energy_mj": 12.5}, "CANNOT JUDGE"),
        ({"energy": _energy((11.0, 13.0))}, {"max_energy_mj": 10.0}, "FAILED"),
        ({"energy": _energy(None)}, {"max_energy_mj": 14.0}, "CANNOT JUDGE"),
        ({"energy": None}, {"max_energy_mj": 14.0}, "CANNOT JUDGE"),
        ({"interval_95_ms": {"p99": (8.0, 8.5)}}, {"max_p99_ms": 8.6}, "PASSED"),
        ({"interval_95_ms": {"p99": (8.0, 8.5)}}, {"max_p99_ms": 8.4}, "CANNOT JUDGE"),
        ({"interval_95_ms": {"p99": (8.0, 8.5)}}, {"max_p99_ms": 7.9}, "FAILED"),
        ({"interval_95_ms": {"p99": None}}, {"max_p99_ms": 8.6}, "CANNOT JUDGE"),
        ({"interval_95_ms": {"p99": None}}, {"max_p99_ms": 7.0}, "FAILED"),
    ],
)
def test_gates_go_by_the_interval(
    field: dict[str, Any], limits: dict[str, float], verdict: str
) -> None:
    run = replace(_run(QUIET), **field)
    result = BenchmarkResult("int8", "onnxruntime", "VALID", (run,))
    judged = judge_performance(BenchmarkLimits(**limits), result)
    assert (judged.gates_verdict, judged.passed) == (verdict, verdict == "PASSED")
    assert all(reason.cure for reason in judged.reasons if reason.verdict == "CANNOT JUDGE")


def test_a_gate_on_energy_lengthens_the_default(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 s hold the readings that an interval needs; 10 s hold 20, which show none."""

    class Resting(Exception):
        pass

    def rest(duration_s: float) -> None:
        raise Resting(duration_s)

    monkeypatch.setattr("fr_edge.runtime.benchmark.benchmark.rest", rest)
    for rails, asked, limit, seconds in (
        ({"VDD_IN": 9000.0}, None, 5.0, 40.0),
        ({"VDD_IN": 9000.0}, 6.0, 5.0, 6.0),
        ({"VDD_IN": 9000.0}, None, None, 10.0),
        ({}, None, 5.0, 10.0),
    ):
        reading = Reading(power_mw=rails)
        monkeypatch.setattr("fr_edge.runtime.benchmark.benchmark.read_board", lambda r=reading: r)
        with pytest.raises(Resting, match=f"^{seconds}$"):
            benchmark(mini, "fp32", duration_s=asked, max_energy_mj=limit)


def _power(seconds: float, period_s: float) -> SensorTrace:
    """A trace of power with noise of a twentieth."""
    times = np.arange(0, seconds, period_s)
    noise = np.random.default_rng(0).normal(9000, 450, len(times))
    readings = [Reading(power_mw={"VDD_IN": float(value)}) for value in noise]
    return SensorTrace(list(times), readings)


def test_the_default_with_a_gate_on_energy_can_be_judged() -> None:
    idle = _power(10, 0.1)
    short, long = (energy(_power(s, 0.5), idle, 1, 0.01, (0.0099, 0.0101)) for s in (10, 40))
    assert short is not None
    assert long is not None
    assert short.interval_95_mj is None
    assert long.interval_95_mj is not None


def test_the_throughput_has_an_interval_where_the_runs_show_one() -> None:
    low, high = _run(QUIET).throughput_interval_95 or (0.0, 0.0)
    assert low < 4 / QUIET.mean() * 1000 < high
    assert high - low < 0.02 * low
    assert _run(QUIET + np.linspace(0, 1, len(QUIET))).throughput_interval_95 is None


def test_a_kernel_that_does_not_tell_is_no_reason() -> None:
    report = to_builtins(_run(QUIET, cpu_wait_share=None))
    assert (report["verdict"], report["cpu_wait_share"]) == ("VALID", None)


def test_a_real_engine(mini: Path) -> None:
    found = benchmark(mini, "fp32", batches=(1, 3), duration_s=0.4, warmup_s=0.6)
    report = to_builtins(found)
    assert [run["batch"] for run in report["runs"]] == [1, 3]
    for run in report["runs"]:
        latency = run["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["max"]
        assert run["throughput_per_s"] == pytest.approx(
            run["batch"] * 1e3 / latency["mean"], rel=1e-2
        )
        assert run["min_cosine_during"] > 0.9999
        assert any("too short" in reason for reason in run["reasons"])
    assert report["golden_min_cosine"] > 0.9999
    assert json.loads((mini / report["report"]).read_text()) == report
    assert open_bundle(mini).history[-1]["summary"]["verdict"] == "INVALID"


def test_saturation_is_where_more_faces_bring_no_more_speed() -> None:
    def saturation(*latencies: float) -> int | None:
        timings = [Timing(latencies_of(np.full(200, ms)), 0.1, True, 0.0) for ms in latencies]
        return saturation_batch(
            [summarize_run(Setting(2**i), timing, 10.0, 1.0) for i, timing in enumerate(timings)]
        )

    assert saturation(1.0, 1.2, 1.8, 3.5, 7.0) == 4  # 1000, 1667, 2222, 2286 a second
    assert saturation(1.0, 1.0, 1.0) is None
    assert saturation(1.0, 3.0) is None


def test_ctrl_c_keeps_what_has_run(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = module.open_session(mini, "fp32")
    plain, begin = session.embed_tensor, time.monotonic()

    def embed(faces: np.ndarray) -> np.ndarray:
        if time.monotonic() - begin > 2.5:  # well after the warm-up
            raise KeyboardInterrupt
        return plain(faces)

    monkeypatch.setattr(session, "embed_tensor", embed)
    monkeypatch.setattr(module, "open_session", lambda *_, **__: session)
    with pytest.raises(BenchmarkInterrupted) as stopped:
        benchmark(mini, "fp32", batches=(1, 2), duration_s=600, warmup_s=0.1)
    report = json.loads((mini / stopped.value.result.report).read_text())
    assert [run["batch"] for run in report["runs"]] == [1]
    assert report["runs"][0]["runs"] > 5
    assert any("stopped" in reason for reason in report["runs"][0]["reasons"])
    assert report["interrupted"]
    assert len(stopped.value.result.runs) == 1


class _Forgetful:
    """A session whose answers move after a while, as an overheating engine's might."""

    backend, precision, dim = "onnxruntime", "fp32", 8

    def __init__(self) -> None:
        self.calls = 0

    def embed_tensor(self, faces: np.ndarray) -> np.ndarray:
        self.calls += 1
        out = faces.reshape(len(faces), -1)[:, : self.dim] + 1
        return out[:, ::-1].copy() if self.calls > 60 else out


class _Stale:
    """A session double that computes its first batches, and then gives an earlier one's results."""

    def __init__(self, session: Any, computes: int) -> None:
        self._session, self._computes, self._buffer = session, computes, np.zeros((0, 1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def embed_tensor(self, inputs: np.ndarray) -> np.ndarray:
        self._computes -= 1
        if self._computes >= 0 or self._buffer.shape[0] != len(inputs):
            self._buffer = self._session.embed_tensor(inputs)
        return self._buffer


@pytest.mark.parametrize("computes", [1, 4, 100])
def test_results_of_an_earlier_batch_are_invalid(
    computes: int, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = _Stale(module.open_session(mini, "fp32"), computes)
    monkeypatch.setattr(module, "open_session", lambda *_, **__: stale)
    result = benchmark(mini, "fp32", duration_s=0.4, warmup_s=0.1)
    assert result.golden_min_cosine is not None
    assert result.golden_min_cosine > 0.9999
    assert any("embeddings moved during the run" in why for why in result.runs[0].reasons)


def test_one_golden_face_makes_two_batches(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mirror image is the other: results of an earlier batch are found all the same."""
    golden = read_golden(open_bundle(mini))
    one = replace(golden, faces=golden.faces[:1], embeddings=golden.embeddings[:1])
    monkeypatch.setattr(module, "read_golden", lambda bundle: one)
    plain = benchmark(mini, "fp32", duration_s=0.2, warmup_s=0.1)
    assert plain.runs[0].min_cosine_during == pytest.approx(1.0)
    stale = _Stale(module.open_session(mini, "fp32"), 100)
    monkeypatch.setattr(module, "open_session", lambda *_, **__: stale)
    result = benchmark(mini, "fp32", duration_s=0.2, warmup_s=0.1)
    assert any("embeddings moved during the run" in why for why in result.runs[0].reasons)


@pytest.mark.parametrize("wrong", [1, 5, 17, 38])
def test_one_wrong_batch_of_many_is_found(wrong: int) -> None:
    """Every run is compared with the embeddings of its own batch, not every n-th."""
    inputs = np.random.default_rng(0).normal(size=(6, 3, 4, 4)).astype(np.float32)
    expected = inputs.reshape(6, -1)[:, :8]
    made: list[np.ndarray] = []

    def embed(batch: np.ndarray) -> np.ndarray:
        made.append(batch.reshape(len(batch), -1)[:, :8])
        return made[-2] if len(made) == wrong + 1 else made[-1]

    work = Workload([embed], ready_batches(inputs, 2), [expected[p] for p in turns(6, 2)])
    for index in range(40):
        work.run(index)
        work.check(index)
    assert work.min_cosine < 0.99


def test_accuracy_is_checked_while_the_clock_runs() -> None:
    inputs = np.random.default_rng(0).normal(size=(6, 3, 4, 4)).astype(np.float32)
    session = _Forgetful()
    expected = session.embed_tensor(inputs)
    work = Workload(
        [session.embed_tensor], ready_batches(inputs, 2), [expected[p] for p in turns(6, 2)]
    )
    time_runs(work.run, 0.05, warmup_s=0.01, between=lambda index, _: work.check(index))
    assert work.min_cosine < 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"batches": ()},
        {"batches": (0,)},
        {"threads": (0,)},
        {"streams": (-1,)},
        {"duration_s": 0},
        {"duration_s": float("nan")},
    ],
)
def test_impossible_options(mini: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        benchmark(mini, "fp32", **options)  # type: ignore[arg-type]
