"""The tests for a real GPU, over the driver's double: they pass, and fail where the driver misbehaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
TESTS = Path(__file__).parents[1] / "runtime" / "cuda" / "test_on_a_gpu.py"


def outcomes(driver: Path, **double: str) -> tuple[dict[str, int], str]:
    """Outcome -> number of tests, and pytest's text."""
    environment = {**os.environ, **{f"DOUBLE_{name}": value for name, value in double.items()}}
    environment["LD_LIBRARY_PATH"] = str(driver)
    line = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "cuda"]
    done = subprocess.run(
        [*line, str(TESTS)], env=environment, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1]
    return {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", last)}, done.stdout


def test_they_pass_over_the_double_of_two_gpus(driver_folder: Path) -> None:
    gpus = "L4|8.9|23034|0;RTX|12.0|16303|0"
    counts, text = outcomes(driver_folder, CUDA="13020", GPUS=gpus, FREE_MB="512")
    assert counts["passed"] == 12, text
    assert set(counts) == {"passed", "skipped"}, text
    skips = re.findall(r"SKIPPED .*: (.*)", text)
    assert all("torch" in s for s in skips), text


def test_replays_that_compute_nothing_are_seen(driver_folder: Path) -> None:
    gpus = "L4|8.9|23034|0"
    counts, text = outcomes(driver_folder, CUDA="12060", GPUS=gpus, REPLAY="nothing", FREE_MB="512")
    assert counts["failed"] == 1, text
    assert "_ test_graphs_replay_with" in text
