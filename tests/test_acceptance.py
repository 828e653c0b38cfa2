"""`make test-gpu` accepts nothing that did not run."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]
from acceptance import ROOT, gpu_tests  # noqa: E402

from fr_edge.runtime.machine.device import find_gpus  # noqa: E402


def test_the_files_with_gpu_tests_need_no_package_that_a_board_has_not(monkeypatch):
    monkeypatch.setattr("acceptance.find_spec", lambda name: None)
    files = gpu_tests()
    assert {"test_tensorrt_session.py", "test_on_a_gpu.py"} <= {path.name for path in files}
    assert "test_margin_softmax.py" not in {path.name for path in files}
    imports = "".join(path.read_text() for path in files)
    for package in ("torch", "onnx_ir", "fr_edge.export", "fr_edge.distill"):
        assert f"\nimport {package}" not in imports
        assert f"\nfrom {package}" not in imports


@pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")
def test_where_everything_is_skipped_nothing_is_accepted():
    line = [sys.executable, str(ROOT / "tests" / "acceptance.py"), "-p", "no:cacheprovider"]
    chosen = ["-k", "test_a_part_of_a_buffer or test_bytes_come_back"]
    done = subprocess.run([*line, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no test ran" in done.stderr
    assert "no NVIDIA driver" in done.stdout
