"""A calibration that is stopped while its faces pass: what was counted is not counted again."""

import os
import shutil
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration import statistics_draft
from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.interruption import Interrupted

MADE = ("calibration.json", "model.int8.onnx")


@pytest.fixture(scope="module")
def people() -> Faces:
    """92 of these faces calibrate: three parts, the last one short."""
    return open_faces("synthetic:115x1@7").cached()


def stopped(bundle: Path, faces: Faces, after: int) -> Interrupted:
    """Calibrate, with a signal when `after` faces have been read."""

    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if label == "calibrating" and number == after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    with pytest.raises(Interrupted) as caught:
        calibrate(bundle, faces, track=track)
    return caught.value


def made(bundle: Path, faces: Faces) -> list[bytes]:
    """Calibrate; what comes into the bundle."""
    done = calibrate(bundle, faces).bundle
    return [done.file(name).read_bytes() for name in MADE]


def test_it_goes_on_as_if_it_had_not_been_stopped(
    exported: Bundle, people: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (shutil.copytree(exported.root, tmp_path / n) for n in ("whole", "stopped"))
    whole = made(first, people)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    draft = tmp_path / ".stopped.statistics"
    before = {path: path.read_bytes() for path in second.rglob("*") if path.is_file()}
    runs = []
    real = statistics_draft.StatisticsDraft.counted
    monkeypatch.setattr(
        statistics_draft.StatisticsDraft,
        "counted",
        lambda self, count: (runs.append(count), real(self, count)),
    )
    for after, faces in ((10, 32), (50, 64)):
        stop = stopped(second, people, after)
        assert stop.number == signal.SIGTERM
        assert stop.kept == f"the statistics of {faces} faces are in {draft}"
    assert draft.stat().st_mode & 0o777 == 0o600
    assert {path: path.read_bytes() for path in second.rglob("*") if path.is_file()} == before
    assert made(second, people) == whole
    assert runs == [32, 32]  # each time the next part alone; the last one is short
    assert not draft.exists()


def test_statistics_of_other_faces_or_of_nonsense_are_not_used(
    exported: Bundle, people: Faces, tmp_path: Path
) -> None:
    root = shutil.copytree(exported.root, tmp_path / "n.bundle")
    draft = tmp_path / ".n.bundle.statistics"
    other = replace(people, read=lambda index: people.read(114 - index))
    expected = made(shutil.copytree(root, tmp_path / "other"), other)
    stopped(root, people, 10)
    data = draft.read_bytes()
    assert made(root, other) == expected
    assert not draft.exists()
    for damaged in (b"", data[: len(data) // 2], b"nonsense"):
        draft.write_bytes(damaged)
        assert made(root, other) == expected
