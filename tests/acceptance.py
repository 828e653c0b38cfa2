"""Run every test that needs a GPU and write what came out to docs/results/<device>.json.

    make test-gpu

Whoever has a board or a card runs it and sends the file. Without a GPU it writes nothing and
exits 3.
"""

import json
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fr_edge._version import __version__
from fr_edge.documents import to_builtins
from fr_edge.files import write_atomic
from fr_edge.runtime.machine.doctor import examine_system
from fr_edge.runtime.selftest import self_test

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


def main() -> int:
    health = examine_system()
    if not health.device.gpu:
        print("no GPU here: nothing to accept; `fr-edge doctor` says why", file=sys.stderr)
        return 3
    seen, start = Outcomes(), time.perf_counter()
    code = pytest.main(["-m", "gpu", "-q", str(ROOT / "tests")], plugins=[seen])
    counts = [str(test["outcome"]) for test in seen.tests.values()]
    document = {
        "fr_edge": __version__,
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "health": to_builtins(health),
        "self_test": [vars(tried) for tried in self_test()],
        "counts": {name: counts.count(name) for name in ("passed", "failed", "skipped")},
        "seconds": round(time.perf_counter() - start, 1),
        "tests": seen.tests,
    }
    name = re.sub(r"[^a-z0-9]+", "-", health.device.gpu[0].lower()).strip("-")
    target = ROOT / "docs" / "results" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps(document, indent=1) + "\n").encode())
    print(f"{target}: {document['counts']}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
