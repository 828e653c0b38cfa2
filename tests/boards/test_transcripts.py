"""Every call to TensorRT on each route, compared with transcripts.txt: a dropped flag is seen.

    PYTHONPATH=tests python tests/boards/test_transcripts.py    writes the file anew

Read the difference before it is kept. A route is a build and, where it can be opened, a session that embeds the same batch twice. What the
calls say is that of TensorRT's double, whose names and signatures are the real bindings'.
"""

import itertools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretend import BOARDS, PretendBoard
from tiny_network import Tiny, write_tiny_bundle

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.trt_cache import (
    ALGORITHM,
    TrtCache,
    activation_tensors,
    cache_text,
    version_number,
)
from fr_edge.errors import UsageError
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.session import open_session
from fr_edge.runtime.trt.config import EngineOptions

SESSION = "-- a session"
GOLDEN = Path(__file__).with_name("transcripts.txt")


@dataclass(frozen=True)
class Route:
    """A way to an engine: precision, options, and the boards that have it."""

    precision: str
    options: dict[str, Any] = field(default_factory=dict)
    boards: tuple[str, ...] = tuple(BOARDS)


BEFORE_11 = tuple(name for name in BOARDS if name != "datacenter11")
ROUTES = {
    "fp32": Route("fp32"),
    "fp16": Route("fp16"),
    "int8 by Q/DQ": Route("int8"),
    "int8 by Q/DQ, static batch": Route("int8", {"batch": (4, 4, 4)}),
    "int8 implicit": Route("int8", {"implicit": True}, BEFORE_11),
    "fp16 on DLA core 1": Route("fp16", {"dla": 1, "batch": (2, 2, 2)}),
    "int8 implicit on DLA core 0": Route(
        "int8", {"dla": 0, "implicit": True, "batch": (2, 2, 2)}, BEFORE_11
    ),
    "int8 by Q/DQ on DLA core 0": Route("int8", {"dla": 0, "batch": (2, 2, 2)}, ("datacenter11",)),
    "raw pixels": Route("int8", {"input_kind": "crop"}),
    "frame": Route("int8", {"input_kind": "frame"}),
    "version- and hardware-compatible": Route(
        "fp32", {"version_compatible": True, "hardware_compatible": True}
    ),
    "workspace and level": Route("fp16", {"workspace_mb": 256, "level": 2}),
}


def with_cache(bundle: Bundle, version: str, tensors: tuple[str, ...]) -> Bundle:
    ranges = TrtCache(version_number(version), ALGORITHM, dict.fromkeys(tensors, 1.0))
    with transaction(bundle.root, "calibrate", {}) as draft:
        draft.path("calibration.cache", "calibration cache").write_bytes(
            cache_text(ranges).encode()
        )
    return open_bundle(bundle.root)


def calls(board: PretendBoard, bundle: Bundle, route: Route) -> list[str]:
    """The transcript of one route."""
    board.trt.dla_cores = 2
    options = {"batch": (1, 4, 8), **route.options}
    if options.get("implicit"):
        version = board.trt.module.__version__
        bundle = with_cache(bundle, version, activation_tensors(Tiny(int8=False).model()))
    kind = options.pop("input_kind", "tensor")
    built = build_engine(
        bundle, route.precision, "tensorrt", options=EngineOptions(**options), input_kind=kind
    )
    counts = ", ".join(f"{name}={n}" for name, n in built.layers.items())
    board.trt.transcript.append(f"-- built: {counts}")
    board.trt.transcript.append(SESSION)
    with open_session(bundle.root, route.precision, "tensorrt") as session:
        images = np.zeros((2, 112, 112, 3), np.uint8)
        for _ in range(2):
            session.embed(images)
        session.layer_times(images, 1)
    rows: list[str] = []
    for row, group in itertools.groupby(map(_steady, board.trt.transcript)):
        times = len(list(group))
        rows.append(f"{row}  x{times}" if times > 1 else row)
    return rows


def _steady(row: str) -> str:
    """Without addresses and sizes of files."""
    row = re.sub(r"memory=\d+", "memory=...", row)
    return re.sub(r"\b\d+ bytes", "... bytes", row)


def read_golden() -> dict[tuple[str, str], list[str]]:
    """(board, route) -> rows; a section stands for all routes and boards of its heads."""
    rows: dict[tuple[str, str], list[str]] = {}
    for section in GOLDEN.read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = section.strip("\n").split("\n")
        for head in (line for line in lines if line.startswith("## ")):
            part, route, boards = re.fullmatch(r"## (\w+) (.+): (.+)", head).groups()  # type: ignore[union-attr]
            for board in boards.split(", "):
                body = [line for line in lines if not line.startswith("## ")]
                rows.setdefault((board, route), []).extend(
                    [SESSION, *body] if part == "session" else body
                )
    return rows


def all_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, list[str]]]:
    for name, route in ROUTES.items():
        for board in route.boards:
            with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
                side = 112 if route.options.get("input_kind") else 16
                bundle = write_tiny_bundle(Path(folder) / "tiny.bundle", side)
                yield board, name, calls(PretendBoard(board, patch), bundle, route)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", ROUTES)
def test_the_calls_are_those_of_the_transcript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, board: str
) -> None:
    route = ROUTES[name]
    side = 112 if route.options.get("input_kind") else 16
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle", side)
    pretend = PretendBoard(board, monkeypatch)
    if board not in route.boards:
        with pytest.raises(UsageError):
            calls(pretend, bundle, route)
        return
    assert calls(pretend, bundle, route) == read_golden()[board, name]


def main() -> None:
    """Write the transcripts; builds, then sessions, each once for all that are alike."""
    sections: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for board, name, rows in all_calls(pytest.MonkeyPatch()):
        cut = rows.index(SESSION)
        for part, body in (("build", rows[:cut]), ("session", rows[cut + 1 :])):
            heads = sections.setdefault((part, *body), {})
            heads.setdefault(f"## {part} {name}", []).append(board)
    text = ["# Calls to TensorRT by route and board; written by test_transcripts.py"]
    for (_, *body), heads in sorted(sections.items(), key=lambda item: item[0][0]):
        lines = [f"{head}: {', '.join(boards)}" for head, boards in heads.items()]
        text.append("\n".join([*lines, *body]))
    GOLDEN.write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
