"""Engines side by side: the Pareto front of size, latency and true accept rate."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from fr_edge.runtime.report.plots import tradeoff_plot
from fr_edge.runtime.report.tradeoff import EngineFigures, Tradeoff, compare_engines, surpassing

FP32 = EngineFigures("engines/a", "fp32", "x", 4.0, 2.0, True, "PASSED", 0.90)
FP16 = replace(FP32, file="engines/b", precision="fp16", size_mb=2.0, p50_ms=1.0)
INT8 = replace(FP32, file="engines/c", precision="int8", size_mb=1.0, p50_ms=0.5, tar=0.89)


def test_an_engine_is_on_the_front_until_another_is_nowhere_worse() -> None:
    three = Tradeoff((FP32, FP16, INT8), "1e-4", "faces", "batch 1")
    assert three.better_than(FP32) == FP16
    assert three.better_than(FP16) is None  # INT8 is less accurate
    assert three.better_than(INT8) is None
    untrusted = replace(FP16, valid=False)
    assert Tradeoff((FP32, untrusted), "1e-4", "", "").better_than(FP32) is None
    assert not untrusted.complete
    for other, reason in (
        (untrusted, "its benchmark is INVALID"),
        (replace(FP16, p50_ms=None), "not timed"),
        (replace(FP16, verdict="FAILED"), "verify: FAILED"),
        (replace(FP16, verdict="", tar=None), "not verified"),
        (replace(FP16, tar=None), "its TAR is not measured"),
    ):
        assert (other.costs, other.not_placed) == ((), reason)
    assert surpassing([(1, 1), (1, 1), (), (1, 2)], 0) == []  # equals do not surpass each other
    assert surpassing([(1, 1), (1, 1), (), (1, 2)], 3) == [0, 1]


def test_the_plot_shows_each_engine_and_joins_the_front() -> None:
    text = tradeoff_plot(Tradeoff((INT8, FP16, replace(FP32, valid=False)), "1e-4", "f", "batch 1"))
    for label in ("INT8 on x, 1.00 MB", "FP16 on x, 2.00 MB", "FP32 on x, 4.00 MB: INVALID"):
        assert f">{label}<" in text
    assert "TAR at FAR 1e-4, %" in text


@dataclass(frozen=True)
class _Run:
    p50: float
    verdict: str
    label: str

    @property
    def latency_ms(self) -> dict[str, float]:
        return {"p50": self.p50}

    @property
    def setting(self) -> Any:
        return SimpleNamespace(label=self.label)


def _report(file: str, kind: str = "engine", **values: Any) -> dict[str, Any]:
    return {"artifact": SimpleNamespace(file=file, kind=kind), **values}


def _verified(file: str, tar: float, name: str = "lfw", kind: str = "engine") -> dict[str, Any]:
    interval = SimpleNamespace(delta=(-0.01, 0.0))
    rate = SimpleNamespace(engine=tar, delta=tar - 0.9, interval_95=interval)
    return _report(
        file,
        kind,
        verdict="PASSED",
        name=name,
        headline=rate,
        headline_far="1e-4",
        tar={"1e-4": rate},
    )


ENGINES = [
    {"file": "a", "precision": "fp32", "backend": "x"},
    {"file": "b", "precision": "int8", "backend": "x"},
    {"file": "d", "precision": "int8", "backend": "x", "role": "detector"},
]
SIZES = {"a": 4_000_000, "b": 1_000_000, "d": 1}


def test_figures_of_the_same_faces_and_setting_are_compared() -> None:
    verified = [
        _verified("b", 0.7, "few faces"),
        _verified("a", 0.9),
        _verified("b", 0.89),
        _verified("b", 0.5, kind="graph"),
    ]
    timed = [
        _report("a", runs=[_Run(2.0, "VALID", "batch 1"), _Run(9.0, "VALID", "batch 8")]),
        _report("b", runs=[_Run(1.0, "INVALID", "batch 1")]),
    ]
    result = compare_engines(ENGINES, SIZES, verified, timed)
    assert result is not None
    assert (result.far, result.faces, result.setting) == ("1e-4", "lfw", "batch 1")
    b, a = result.engines  # the fastest first; a detector is not among them
    assert (a.size_mb, a.p50_ms, a.valid, a.tar) == (4.0, 2.0, True, 0.9)
    assert (b.size_mb, b.p50_ms, b.valid, b.tar) == (1.0, 1.0, False, 0.89)
    assert (a.verdict, b.verdict) == ("PASSED", "PASSED")
    assert b.interval_95 == (-0.01, 0.0)


def test_one_engine_is_not_compared() -> None:
    timed = [_report("a", runs=[_Run(2.0, "VALID", "batch 1")])]
    assert compare_engines(ENGINES, SIZES, [_verified("a", 0.9)], timed) is None
    assert compare_engines(ENGINES, SIZES, [], []) is None
