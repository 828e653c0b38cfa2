"""Acceptances in small: a miniature in the place of the sample network, and short timings."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "boards")]
from pretend import PretendBoard  # noqa: E402

from fr_edge.runtime import build  # noqa: E402
from fr_edge.runtime.acceptance import accept, disclosure, engine_check  # noqa: E402
from fr_edge.runtime.machine import doctor  # noqa: E402


@pytest.fixture
def short(calibrated_mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature is the sample; nothing is timed for long."""

    def make(root: Path, track: Any) -> None:
        shutil.copytree(calibrated_mini, root)

    monkeypatch.setattr(accept, "make_sample_bundle", make)
    monkeypatch.setattr(accept, "_TIMING_S", 0.05)
    for name in ("_TIMING_S", "_WARM_UP_S"):
        monkeypatch.setattr(engine_check, name, 0.2)
    monkeypatch.setattr(build, "_PRELU_S", 0.05)


class AcceptanceBoard(PretendBoard):
    """A pretend Orin with JetPack 6.2; `doctor` and `accept` see it too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("jetpack6.2", monkeypatch)
        for module in (doctor, accept, disclosure):
            monkeypatch.setattr(module, "find_gpus", lambda: self.gpus)

    def compute_no_int8(self, computes: bool) -> None:
        """Whether the builder takes FP16 for INT8 everywhere."""
        self.trt.keeps = lambda node, kind, depthwise: (
            "fp16" if computes and kind == "int8" else None
        )


@pytest.fixture
def board(short: None, monkeypatch: pytest.MonkeyPatch) -> AcceptanceBoard:
    return AcceptanceBoard(monkeypatch)
