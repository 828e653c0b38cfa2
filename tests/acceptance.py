"""Run the tests marked `gpu` and `cuda`, and fail when none of them ran; `make test-gpu` calls it.

Only files that a board can import are collected: those of training need torch, which no engine does.
"""

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKS = ("gpu", "cuda")


class Outcomes:
    """A pytest plugin that counts what came out."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def gpu_tests() -> list[Path]:
    """The files with such tests; those of training only where torch is installed."""
    files = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        marked = any(f"mark.{mark}" in text for mark in MARKS)
        if marked and (find_spec("torch") or "\nimport torch" not in text):
            files.append(path)
    return files


def main(options: list[str]) -> int:
    seen = Outcomes()
    line = ["-m", " or ".join(MARKS), "-q", "-rs", *options, *map(str, gpu_tests())]
    code = int(pytest.main(line, plugins=[seen]))
    if not seen.counts["passed"] and code in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        print("no test ran: all were skipped, with the reasons above", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
