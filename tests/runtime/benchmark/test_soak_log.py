"""A long run's journal: whole lines, as it goes."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.soak_log import SoakLog
from fr_edge.runtime.machine.sensors import Reading


def test_lines_are_there_before_the_run_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    readings = [Reading(clock_mhz={"gpu": 1300.0})]
    with SoakLog(path, interval_s=0.0) as journal:
        journal.begin(Setting(8, None, 2), readings)
        journal.add(5_000_000)
        lines = path.read_text().splitlines()
        assert len(lines) == 1
        readings.append(Reading(clock_mhz={"gpu": 1000.0}, throttled=("gpu",)))
        journal.add(7_000_000)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["batch"], first["streams"], first["runs"]) == (8, 2, 1)
    assert (first["mean_ms"], second["max_ms"]) == (5.0, 7.0)
    assert (first["clock_mhz"], second["clock_mhz"]) == ({"gpu": 1300.0}, {"gpu": 1000.0})
    assert second["throttled"] == ["gpu"]


def test_what_is_left_is_written_at_the_end_and_a_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with suppress(KeyboardInterrupt), SoakLog(path) as journal:
            journal.begin(Setting(), [])
            for ns in range(1_000_000, 3_000_000, 1_000):
                journal.add(ns)
            raise KeyboardInterrupt
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["runs"] for row in rows] == [2000, 2000]
    assert rows[0]["p50_ms"] == pytest.approx(1.9995, abs=1e-3)


def test_a_setting_begins_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with SoakLog(path) as journal:
        for size in (1, 4):
            journal.begin(Setting(size), [])
            journal.add(10**6)
    assert [json.loads(line)["batch"] for line in path.read_text().splitlines()] == [1, 4]
