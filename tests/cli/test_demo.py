"""The demo's stages run on real parts, once each; its gates judge. `make demo` is the full size."""

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'fr-edge[train]'")

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli import demo_stages
from fr_edge.cli.demo_stages import DemoPlan, run_demo
from fr_edge.cli.main import root, run
from fr_edge.cli.output import Output
from fr_edge.errors import DataError
from fr_edge.interruption import Interrupted
from fr_edge.runtime.evaluation.gates import ceiling_gate

SMALL = DemoPlan(
    training="synthetic:24x4@1",
    calibration="synthetic:8x2@2",
    judging="synthetic:24x3@3",
    changes=("epochs=1", "verify_identities=4", "batch=20"),
)
QUIET = Output(quiet=True)


class Stopping(Output):
    """Gets a signal in the middle of a training."""

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if label == "training" and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item


@pytest.fixture(scope="module", autouse=True)
def timed_in_short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_stages, "_TIMING_S", 0.2)
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Interrupted]:
    """A demo that was stopped inside its first stage."""
    folder = tmp_path_factory.mktemp("home") / "demo"
    with pytest.raises(Interrupted) as caught:
        run_demo(folder, Stopping(quiet=True), SMALL)
    return folder, caught.value


@pytest.fixture(scope="module")
def half(stopped: tuple[Path, Interrupted]) -> Path:
    """The same gone on, and interrupted before it verifies."""
    folder, _ = stopped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_stages, "_verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_demo(folder, QUIET, SMALL)
    return folder


@pytest.fixture(scope="module")
def home(half: Path) -> Path:
    """A copy of it that has gone on to the end."""
    folder = half.parent / "whole" / "demo"
    shutil.copytree(half, folder)
    run_demo(folder, QUIET, SMALL)
    return folder


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_stage_that_was_stopped_goes_on(stopped: tuple[Path, Interrupted], half: Path) -> None:
    folder, stop = stopped
    assert stop.kept.startswith("the training is kept up to step 2 of ")
    assert stop.kept.endswith(f"0 of 15 stages are finished in {folder}")
    history = open_bundle(half / "teacher.bundle").history
    assert [entry["stage"] for entry in history] == ["distill"]
    assert not (half / "teacher.bundle" / "checkpoint").exists()


def test_it_goes_on_where_it_was_interrupted(half: Path, home: Path) -> None:
    before, after = (
        [stage["stage"] for stage in json.loads((folder / "demo.json").read_text())["stages"]]
        for folder in (half, home)
    )
    assert before[-1] == "engine int8"
    assert after[: len(before)] == before
    assert after[-1] == "report"
    first, last = (folder / "student.bundle" / "model.pt" for folder in (half, home))
    assert first.stat().st_mtime_ns == last.stat().st_mtime_ns
    assert run_demo(home, QUIET, SMALL).report.is_file()
    bundle = open_bundle(home / "student.bundle")
    stages = [entry["stage"] for entry in bundle.history]
    assert stages.count("distill") == stages.count("export") == stages.count("calibrate") == 1
    assert stages.count("build-engine") == 3


def test_a_student_that_has_not_learned_fails_the_gates(home: Path) -> None:
    done = run_demo(home, QUIET, SMALL)
    assert not done.passed
    assert [g.passed for g in done.gates if g.name == "student learned"] == [False]
    engines = {g.name: g for g in done.gates if "matches PyTorch" in g.name}
    names = ("fp16 engine", "int8 engine", "int8 graph")
    assert list(engines) == [f"{name} matches PyTorch" for name in names]
    for gate in engines.values():  # they match a student that hardly separates people
        assert not gate.passed
        assert "CANNOT JUDGE" in gate.text
        assert "FAILED" not in gate.text


def test_the_int8_rounding_is_judged(home: Path) -> None:
    """Whether or not this CPU computes INT8 layers in float."""
    done = run_demo(home, QUIET, SMALL)
    reports = {stage.stage: stage.made for stage in done.stages}
    for stage, kind in (("verify int8", "engine"), ("verify int8 graph", "graph")):
        report = json.loads((done.bundle / reports[stage]).read_text())
        assert report["artifact"]["kind"] == kind


def test_the_example_runs(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: Callable[[], AbstractContextManager[list[str]]],
) -> None:
    """On few faces, where nothing can be judged; .ci/run runs `make demo` in full, and it passes."""
    monkeypatch.chdir(home.parent)
    monkeypatch.setattr(demo_stages, "FULL", SMALL)
    command = root.get_command(click.Context(root), "demo")
    assert command is not None
    assert command.example == "fr-edge demo --out demo"
    with terminal() as lines:
        assert run(shlex.split(command.example)[1:]) == 1
    assert "report: demo/student.bundle/report.html" in lines
    assert any("a gate of the demo failed" in line for line in lines)


def test_a_demo_of_other_recipes_is_not_mixed_in(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="other settings"):
        run_demo(home, QUIET, DemoPlan())
    assert run(["demo", "--out", str(home)]) == 4
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("drop", "passes"), [(0.0, True), (0.01, True), (0.011, False), (None, False)]
)
def test_the_drop_as_counted_stays_below_a_point(drop: float | None, passes: bool) -> None:
    gate = ceiling_gate("TAR drop at FAR 1e-4", drop, 0.03, "" if drop is not None else "few pairs")
    assert (demo_stages._counted_drops([gate]) == []) == passes
    assert demo_stages._counted_drops([]) != []
