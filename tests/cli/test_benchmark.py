"""`fr-edge benchmark`: a person sees whether the figure holds, a script and CI too."""

import fcntl
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from fr_edge.cli.benchmark_text import as_markdown, as_text
from fr_edge.cli.main import run
from fr_edge.cli.output import Output
from fr_edge.documents import convert
from fr_edge.runtime.benchmark.result import BenchmarkResult
from fr_edge.runtime.benchmark.timing import Timing, time_runs

Captured = pytest.CaptureFixture[str]
ENERGY = {
    "rail": "VDD_IN",
    "power_mw": 5000.0,
    "idle_mw": 3000.0,
    "samples": 20,
    "mj_per_face": 3.25,
    "interval_95_mj": [3.0, 3.5],
}
SHORT = ["--engine", "fp32", "--duration", "0.2", "-q"]


def _timed(bundle: Path, capsys: Captured, *args: str, code: int = 0) -> dict[str, Any]:
    line = ["benchmark", str(bundle), *SHORT, "--json", "--allow-invalid", *args]
    assert run(line) == code
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def _result(document: dict[str, Any]) -> BenchmarkResult:
    return convert(document, BenchmarkResult, "the document")


def _slower(path: Path, times: float) -> None:
    """As if everything had taken so many times as long."""
    report = json.loads(path.read_text())
    for one in report["runs"]:
        for names in ("latency_ms", "interval_95_ms"):
            for key, value in one[names].items():
                if value is not None:
                    one[names][key] = (
                        [v * times for v in value] if isinstance(value, list) else (value * times)
                    )
    path.write_text(json.dumps(report))


def test_the_verdict_is_said_first(bundle: Path, capsys: Captured) -> None:
    assert run(["benchmark", str(bundle), *SHORT]) == 1
    message = capsys.readouterr()
    first, second = message.out.splitlines()[:2]
    assert first == "INVALID: 1 of 1 lines cannot be trusted."
    assert second.startswith("  batch 1: too short")
    assert "--allow-invalid" in message.err


def test_the_earlier_report_is_read_before_this_run_replaces_it(
    bundle: Path, capsys: Captured
) -> None:
    report = bundle / _timed(bundle, capsys)["report"]
    _slower(report, 1e-3)
    compare = ["--against", str(report), "--max-regression", "5%"]
    outside = bundle.parent / "earlier.json"
    outside.write_bytes(report.read_bytes())
    values = _timed(bundle, capsys, *compare, code=1)
    assert values["against"]["passed"] is False
    assert values["against"]["first"] == str(report)
    assert (
        json.loads(report.read_text())["runs"][0]["latency_ms"] == values["runs"][0]["latency_ms"]
    )
    _slower(outside, 1e6)
    compare[1] = str(outside)
    assert _timed(bundle, capsys, *compare)["against"]["passed"] is True


def test_sweeps(bundle: Path, capsys: Captured) -> None:
    values = _timed(bundle, capsys, "--batch", "2,1,2", "--threads", "1,2")
    settings = [(r["threads"], r["batch"]) for r in values["runs"]]
    assert settings == [(t, b) for t in (1, 2) for b in (2, 1)]
    values = _timed(bundle, capsys, "--batch", "auto", "--end-to-end")
    assert [r["batch"] for r in values["runs"]][:3] == [1, 2, 4]
    assert "JPEG" in values["timed"]


def test_queries_at_random(bundle: Path, capsys: Captured) -> None:
    values = _timed(bundle, capsys, "--rate", "60,90")
    assert [r["rate"] for r in values["runs"]] == [60, 90]
    text = as_text(_result(values))
    assert text.splitlines()[1].startswith("  batch 1, 60 queries/s: ")
    assert "batch 1, 90 queries/s: at work " in text
    assert as_markdown(_result(values)).startswith("| batch | rate | p50 ms |")
    report = bundle / values["report"]
    again = _timed(bundle, capsys, "--rate", "60", "--against", str(report))["against"]["changes"]
    assert "benchmark: batch 1, 60 queries/s faces per second" in {c["name"] for c in again}
    assert run(["benchmark", str(bundle), *SHORT, "--against", str(report)]) == 2
    message = capsys.readouterr()
    assert "no setting in common" in message.err
    assert "faces/s" in message.out  # what was measured is printed all the same


def test_markdown_holds_figures_machine_and_reasons(bundle: Path, capsys: Captured) -> None:
    values = _timed(bundle, capsys, "--batch", "1,2", "--streams", "2")
    lines = as_markdown(_result(values)).splitlines()
    assert lines[0].startswith("| batch | streams | p50 ms | 95 % interval |")
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {11}
    assert len([line for line in lines if line.startswith("| ")]) == 4
    assert any(line.startswith("- batch 1, streams 2: too short") for line in lines)
    assert values["device"]["cpu"] in as_markdown(_result(values))
    assert run(["benchmark", str(bundle), *SHORT, "--allow-invalid", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| batch | p50 ms |")


def test_what_a_board_tells_is_in_the_text(bundle: Path, capsys: Captured) -> None:
    values = _timed(bundle, capsys, "--layers")
    device = values["device"] | {"jetson": "Orin NX", "power_mode": "25W", "sensors_denied": ["/s"]}
    device["clocks"] = {"gpu": {"governor": None, "min_mhz": 1.0, "max_mhz": 1.0, "held": True}}
    one = values["runs"][0] | {"energy": ENERGY, "verdict": "VALID", "reasons": []}
    text = as_text(_result({**values, "verdict": "VALID", "runs": [one], "device": device}))
    assert text.startswith("VALID")
    assert "power mode 25W, clocks held: gpu" in text
    assert "3.25 (3.00 to 3.50) mJ per face above rest" in text
    assert "VDD_IN drew 5000 mW, at rest 3000 mW" in text
    assert "no permission for /s" in text
    assert "Conv" in text


def test_a_power_mode_that_this_machine_cannot_be_in(bundle: Path, capsys: Captured) -> None:
    values = _timed(bundle, capsys, "--power-mode", "MAXN")
    assert any("power mode MAXN is required" in reason for reason in values["runs"][0]["reasons"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_has_run_survives_a_stop(
    number: int, bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> Timing:
        Timer(1.5, os.kill, (os.getpid(), number)).start()
        return time_runs(*args, **{**options, "warmup_s": 0.1})

    monkeypatch.setattr("fr_edge.runtime.benchmark.benchmark.time_runs", stopped)
    log = bundle.parent / "log.jsonl"
    line = ["benchmark", str(bundle), "--engine", "fp32", "--duration", "1h", "--json"]
    assert run([*line, "--log", str(log)]) == 128 + number
    message = capsys.readouterr()
    values = json.loads(message.out)
    assert "interrupted: what had run is above" in message.err
    assert values["interrupted"] is True
    assert values["runs"][0]["runs"] > 0
    assert "stopped before its time" in values["runs"][0]["reasons"]
    assert json.loads((bundle / values["report"]).read_text()) == values
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert abs(sum(row["runs"] for row in rows) - values["runs"][0]["runs"]) <= 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def _held(bundle: Path) -> int:
    """A lock on the bundle, as another command that writes it has it."""
    handle = os.open(bundle, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def test_a_locked_bundle_costs_the_report_only(
    bundle: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_edge.bundle.bundle._LOCK_WAIT_S", 0.3)
    before, handle = (bundle / "bundle.json").read_bytes(), _held(bundle)
    line = ["benchmark", str(bundle), *SHORT, "--json", "--allow-invalid"]
    assert run([*line, "--junit", str(tmp_path / "b.xml")]) == 3
    os.close(handle)
    message = capsys.readouterr()
    assert json.loads(message.out)["runs"][0]["latency_ms"]["p50"] > 0
    assert "the result is above, and was not stored: another command is writing" in message.err
    assert (tmp_path / "b.xml").is_file()
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_lock_that_is_released_is_waited_for(bundle: Path, capsys: Captured) -> None:
    handle = _held(bundle)
    Timer(4.0, os.close, (handle,)).start()
    values = _timed(bundle, capsys)
    assert json.loads((bundle / values["report"]).read_text()) == values


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody who may not write")
def test_a_read_only_bundle_costs_the_report_only(
    bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Output.result

    def print_and_lose_rights(self: Output, document: Any, text: str) -> None:
        plain(self, document, text)
        os.seteuid(65534)

    monkeypatch.setattr(Output, "result", print_and_lose_rights)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(shutil.copytree(bundle, Path(folder) / "b.bundle"))
        for path in (Path(folder), other, *other.rglob("*")):  # whatever the umask
            path.chmod(0o755)
        try:
            code = run(["benchmark", str(other), *SHORT, "--allow-invalid"])
        finally:
            os.seteuid(0)
    message = capsys.readouterr()
    assert code == 3
    assert "faces/s" in message.out
    assert "was not stored" in message.err
    assert "cannot be written" in message.err


def test_a_policy_names_the_gates(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    policy, file = tmp_path / "policy.toml", tmp_path / "b.xml"
    policy.write_text(
        "[benchmark]\nmax_p99_ms = 1e-3\nmax_energy_mj = 5\n[benchmark.fp32]\nmin_throughput = 2\n"
    )
    args = ["--policy", str(policy), "--min-throughput", "3", "--junit", str(file)]
    values = _timed(bundle, capsys, *args, code=1)
    limits = {gate["name"].split(",")[0]: gate["limit"] for gate in values["gates"]}
    assert limits == {"p99 ms": 1e-3, "faces per second": 3.0, "mJ per face": 5.0}
    if values["runs"][0]["energy"] is None:
        energy = values["gates"][2]
        assert (energy["value"], energy["verdict"]) == (None, "CANNOT JUDGE")
        assert "no sensor of this machine shows its power" in energy["reason"]
        assert "<skipped" in file.read_text()
    assert (bundle / "policy.toml").read_bytes() == policy.read_bytes()
    assert values["provenance"]["files"]["policy.toml"]
    # The bundle keeps it: the next run is judged by it without being told.
    again = _timed(bundle, capsys, code=1)
    assert [gate["limit"] for gate in again["gates"]] == [1e-3, 2.0, 5.0]
    policy.write_text("[benchmark]\nmax_p99 = 1\n")
    assert run(["benchmark", str(bundle), *SHORT, "--policy", str(policy)]) == 4
    assert "did you mean 'max_p99_ms'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--batch", "0"], 2, "from 1 up"),
        (["--batch", "1,x"], 2, "from 1 up"),
        (["--batch", "9999999"], 2, "from 1 up"),
        (["--threads", "0"], 2, "from 1 up"),
        (["--streams", "-1"], 2, "from 1 up"),
        (["--duration", "0"], 2, "above 0"),
        (["--duration", "-1"], 2, "above 0"),
        (["--duration", "nan"], 2, "above 0"),
        (["--duration", "1d"], 2, "90s, 5m or 1h"),
        (["--json", "--markdown"], 2, "choose one"),
        (["--max-regression", "5%"], 2, "needs --against"),
        (["--against", "nowhere.json"], 4, "no report at nowhere.json"),
        (["--log", "nowhere/log.jsonl"], 3, "nowhere"),
        (["--backend", "tensorrt", "--threads", "2"], 3, "tensorrt backend cannot be used"),
    ],
)
def test_bad_input_is_said_at_once(
    args: list[str],
    code: int,
    message: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    timed: list[object] = []
    monkeypatch.setattr(
        "fr_edge.runtime.benchmark.benchmark.time_runs", lambda *a, **k: timed.append(a)
    )
    assert run(["benchmark", str(bundle), "--engine", "fp32", *args, "-q"]) == code
    assert not timed  # it is said before anything is run
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert (bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "[]", '{"gates": [], "cosine": {"min": 1, "p1": 1, "mean": 1}, "tar": {}}']
)
def test_against_something_else(text: str, bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "other.json").write_text(text)
    line = ["benchmark", str(bundle), *SHORT, "--against", str(tmp_path / "other.json")]
    assert run(line) == 4
    assert "other.json" in capsys.readouterr().err


def test_gates_of_each_run(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """What an undisturbed run would pass cannot be judged by a disturbed one, and fails otherwise."""
    file = tmp_path / "b.xml"
    gates = ["--max-p99-ms", "1e-6", "--min-throughput", "1e-3", "--max-energy-mj", "1e9"]
    args = ["benchmark", str(bundle), "--engine", "int8", "--duration", "0.2", "--allow-invalid"]
    assert run([*args, *gates, "--junit", str(file), "--json", "-q"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    names = [gate["name"].split(",")[0] for gate in report["gates"]]
    assert names == ["p99 ms", "faces per second", "mJ per face"]
    # 0.2 s are INVALID, so that no gate may pass or fail by them.
    assert {gate["verdict"] for gate in report["gates"]} == {"CANNOT JUDGE"}
    assert report["gates_verdict"] == "CANNOT JUDGE"
    assert 'errors="0"' not in file.read_text()
    assert run([*args, "--max-p99-ms", "0"]) == 2
