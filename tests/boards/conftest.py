"""What the tests of boards share: the doubles in C, built once."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from board_trees import BOARDS
from compiled import COMPILER, NO_COMPILER, build_driver, build_files
from networks import write_distinct_people
from shell import Boards, Shell
from tiny_network import bundle, faces, tiny  # noqa: F401

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.golden import read_golden, write_golden
from fr_edge.runtime.benchmark import timing

_GOLDEN = 12


@pytest.fixture(scope="module", autouse=True)
def short_warm_up() -> Iterator[None]:
    """Of benchmarks in this process; those of boards have a clock of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_WINDOW_S", 0.02)
        yield


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver's double; the test skips without a C compiler."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    return build_driver(tmp_path_factory.mktemp("driver")).parent


@pytest.fixture(scope="session")
def files_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The double of a board's files; the test skips without a C compiler."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    return build_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def calibrated_mini(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a third of its golden faces, which every `verify` and `accept` embeds often."""
    folder = tmp_path_factory.mktemp("boards") / "mini.bundle"
    shutil.copytree(calibrated_mini, folder)
    golden = read_golden(open_bundle(folder))
    with transaction(folder, "export", {}) as draft:
        path = draft.path("golden.npz", "golden faces")
        few = slice(_GOLDEN)
        write_golden(path, golden.faces[few], golden.embeddings[few], "onnx", exact=None)
    return folder


@pytest.fixture(scope="session")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 people whom a network of random weights tells apart: as many as README's gate needs."""
    return write_distinct_people(tmp_path_factory.mktemp("judging") / "faces", 80, 3)


@pytest.fixture(scope="session")
def boards(driver_folder: Path, files_library: Path) -> Iterator[Boards]:
    """The process that begins boards."""
    process = Boards(driver_folder, files_library)
    yield process
    process.close()


@pytest.fixture
def open_board(tmp_path: Path, boards: Boards) -> Iterator[Callable[..., Shell]]:
    """`open_board(name, **double)`: a shell on a board of `board_trees.BOARDS`."""
    shells: list[Shell] = []

    def make(name: str, **double: str) -> Shell:
        home = tmp_path / f"board{len(shells)}"
        board = (
            BOARDS[name]
            if not (gpus := double.pop("gpus", ""))
            else replace(BOARDS[name], gpus=gpus)
        )
        shells.append(Shell(board, home, boards, **double))
        return shells[-1]

    yield make
    for shell in shells:
        shell.close()
