"""Run every test that needs a GPU and write what came out to docs/results/<device>.json.

    make test-gpu

Whoever has a board or a card runs it and sends the file. Without a GPU it writes nothing and
exits 3; it exits 1 when something failed, and when nothing ran.
"""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import pytest

from fr_edge._version import __version__
from fr_edge.documents import to_builtins
from fr_edge.files import write_atomic
from fr_edge.runtime.machine.doctor import examine_system
from fr_edge.runtime.selftest import SelfTestResult, self_test

ROOT = Path(__file__).parents[1]


class Outcomes:
    """A pytest plugin that keeps each test's outcome and the reason of what did not pass."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, object]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            text = report.longreprtext if report.failed else ""
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else text[-2000:]
            self.tests[report.nodeid] = {
                "outcome": report.outcome,
                "seconds": round(report.duration, 3),
                "reason": reason,
            }


def gpu_tests() -> list[Path]:
    """The files with tests that need a GPU; those of training only where torch is installed."""
    files = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.gpu" in text and (find_spec("torch") or "import torch" not in text):
            files.append(path)
    return files


def problems(
    code: int, counts: Mapping[str, int], tried: Sequence[SelfTestResult], setup: Sequence[str]
) -> list[str]:
    """Why the run accepts nothing: a failure, or no test and no backend ran on the GPU."""
    failed = [f"the self-test of {t.backend}: {t.detail}" for t in tried if t.outcome == "failed"]
    if counts["failed"] or code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        failed.append(f"pytest ended with {int(code)}; {counts['failed']} tests failed")
    if failed:
        return failed
    gpu = [t for t in tried if t.backend != "onnxruntime"]
    if not any(t.outcome == "ran" for t in gpu):
        reasons = [f"{t.backend}: {t.detail}" for t in gpu]
        return ["no backend ran on the GPU", *reasons, *setup]
    if not counts["passed"]:
        return ["no test ran: all were skipped", *setup]
    return []


def main() -> int:
    health = examine_system()
    if not health.device.gpu:
        print("no GPU here: nothing to accept; `fr-edge doctor` says why", file=sys.stderr)
        return 3
    seen, start = Outcomes(), time.perf_counter()
    code = pytest.main(["-m", "gpu", "-q", *map(str, gpu_tests())], plugins=[seen])
    counts = [str(test["outcome"]) for test in seen.tests.values()]
    outcomes = {name: counts.count(name) for name in ("passed", "failed", "skipped")}
    tried = self_test()
    document = {
        "fr_edge": __version__,
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "health": to_builtins(health),
        "self_test": [vars(result) for result in tried],
        "counts": outcomes,
        "seconds": round(time.perf_counter() - start, 1),
        "tests": seen.tests,
    }
    name = re.sub(r"[^a-z0-9]+", "-", health.device.gpu[0].lower()).strip("-")
    target = ROOT / "docs" / "results" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps(document, indent=1) + "\n").encode())
    print(f"{target}: {outcomes}")
    failures = problems(int(code), outcomes, tried, health.problems)
    for text in failures:
        print(text, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
