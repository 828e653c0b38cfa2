"""`make test-gpu` accepts nothing that did not run."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]
from acceptance import gpu_tests, problems  # noqa: E402

from fr_edge.runtime.selftest import SelfTestResult  # noqa: E402

CPU = SelfTestResult("onnxruntime", "ran", "deviates by 1e-07")
RAN = SelfTestResult("tensorrt", "ran", "deviates by 1e-04")
SKIPPED = SelfTestResult("tensorrt", "skipped", "the package tensorrt is not installed")
FAILED = SelfTestResult("tensorrt", "failed", "int8: none of the layers computes in INT8")
VENV = "JetPack's tensorrt is outside this virtual environment"


def counts(passed: int = 0, failed: int = 0, skipped: int = 0) -> dict[str, int]:
    return {"passed": passed, "failed": failed, "skipped": skipped}


def test_what_ran_and_passed_is_accepted():
    assert problems(0, counts(passed=9, skipped=2), [CPU, RAN], [VENV]) == []


@pytest.mark.parametrize(
    ("code", "outcomes", "tried", "says"),
    [
        (0, counts(skipped=12), [CPU, SKIPPED], "no backend ran on the GPU"),
        (5, counts(), [CPU, SKIPPED], "no backend ran on the GPU"),
        (0, counts(passed=1), [CPU, SKIPPED], "the package tensorrt is not installed"),
        (0, counts(skipped=12), [CPU, SKIPPED], VENV),
        (0, counts(skipped=12), [CPU, RAN], "all were skipped"),
        (1, counts(passed=5, failed=1), [CPU, RAN], "1 tests failed"),
        (2, counts(), [CPU, RAN], "pytest ended with 2"),
        (0, counts(passed=5), [CPU, FAILED], "none of the layers computes in INT8"),
    ],
)
def test_what_did_not_run_or_failed_is_not(code, outcomes, tried, says):
    assert says in " ".join(problems(code, outcomes, tried, [VENV]))


def test_the_files_with_gpu_tests_need_no_package_that_a_board_has_not(monkeypatch):
    monkeypatch.setattr("acceptance.find_spec", lambda name: None)
    files = gpu_tests()
    assert {"test_tensorrt_session.py", "test_interface.py"} <= {path.name for path in files}
    imports = "".join(path.read_text() for path in files)
    for package in ("torch", "onnx_ir", "fr_edge.export", "fr_edge.distill"):
        assert f"import {package}" not in imports
        assert f"from {package}" not in imports
