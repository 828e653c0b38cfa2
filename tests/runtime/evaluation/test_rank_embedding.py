"""Several processes embed a set: the bits of one process, whatever ends or was left behind."""

import hashlib
import json
import multiprocessing
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest

from fr_edge.documents import encode_json
from fr_edge.errors import UsageError
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.evaluation.rank_exchange import RankShare, share_of_environment

_PROCESS = Path(__file__).with_name("rank_process.py")
_FACES = 160  # of rank_process.SOURCE: five batches


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(folder: Path, size: int, ranks: range | None = None, **task: Any) -> list[int | None]:
    """Run `ranks` of `size` processes, the last one first; gives their exit codes by rank."""
    context = multiprocessing.get_context("forkserver")  # it imports once; the processes are forks
    context.set_forkserver_preload(["fr_edge.runtime.evaluation.evaluate", "onnxruntime"])
    processes = {}
    for rank in reversed(ranks or range(size)):
        own = task | task.get(f"rank_{rank}", {}) | {"folder": folder}
        env = {"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}
        env |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        given = {"TASK": own, "ENV": env}
        processes[rank] = context.Process(target=run_path, args=(str(_PROCESS), given, "__main__"))
        processes[rank].start()
    for process in processes.values():
        process.join(120)
    return [processes[rank].exitcode for rank in sorted(processes)]


def sums() -> Any:
    pixels = np.concatenate(list(open_faces("synthetic:20x8@7").batches(_FACES)))
    return pixels.reshape(_FACES, 4, -1).sum(2).astype(np.float32)


def test_embed_writes_the_file_of_one_process(mini: Path, tmp_path: Path) -> None:
    line = ["embed", str(mini), "--faces", "synthetic:17x4", "--out"]
    for size in (1, 3):
        assert start(tmp_path, size, line=[*line, str(tmp_path / f"{size}.npz")]) == [0] * size
    files = [(tmp_path / f"{size}.npz").read_bytes() for size in (1, 3)]
    assert files[0] == files[1]
    assert [(tmp_path / f"out-{rank}").read_text() != "" for rank in (0, 1, 2)] == [True] + [
        False
    ] * 2
    assert not list((tmp_path / "cache" / "fr-edge").glob("*/*"))


@pytest.mark.parametrize("protocol", ["faces", "ijb"])
def test_evaluate_reports_what_one_process_does(
    protocol: str, mini: Path, ijb_folder: Path, tmp_path: Path
) -> None:
    judged = str(ijb_folder) if protocol == "ijb" else "synthetic:17x4"
    line = ["evaluate", str(mini), "--protocol", judged, "--engine", "fp32", "--flip", "--json"]
    line += ["--artifact", "graph"]
    documents = []
    for size in (1, 2):
        assert start(tmp_path, size, line=line) == [0] * size
        name = "out-0" if size > 1 else "out-alone"
        documents.append(json.loads((tmp_path / name).read_text()))
        del documents[-1]["provenance"]["time"]
    assert documents[0] == documents[1]
    assert documents[0]["provenance"]["images"]


def test_a_rank_that_dies_is_named_and_the_next_run_goes_on(tmp_path: Path) -> None:
    dies = {"at": _FACES - 1, "how": "die"}
    assert start(tmp_path, 2, rank_1=dies) == [3, -9]
    assert "rank 1 of 2 (process " in (tmp_path / "error-0").read_text()
    assert (
        "died before its part was done\nrun the same command" in (tmp_path / "error-0").read_text()
    )
    assert start(tmp_path, 2) == [0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), sums())
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == ["0", "32"]


def test_the_error_of_a_rank_is_that_of_all(tmp_path: Path) -> None:
    assert start(tmp_path, 3, rank_2={"at": _FACES - 1, "how": "damaged"}) == [4, 4, 4]
    assert (tmp_path / "error-2").read_text() == f"face {_FACES - 1} is not an image\n"
    assert f"failed: face {_FACES - 1} is not" in (tmp_path / "error-0").read_text()
    assert "rank 0 of 3 (process" in (tmp_path / "error-1").read_text()


def test_what_an_earlier_run_left_is_no_part_and_is_named(tmp_path: Path) -> None:
    assert start(tmp_path, 2, ranks=range(1), absent_s=0.5) == [3]
    assert "rank 1 of 2 has not begun\n" in (tmp_path / "error-0").read_text()
    (folder,) = (tmp_path / "cache" / "fr-edge" / "ranks").iterdir()
    earlier = json.loads((folder / "rank-0.json").read_text())
    part = bytes(16 * len(RankShare(1, 2).range(_FACES)))
    (folder / "part-1").write_bytes(part)
    left = {**earlier, "state": "done", "knows": {"0": earlier["run"]}, "host": "desk", "pid": 9}
    left["sha256"] = hashlib.sha256(part).hexdigest()
    (folder / "rank-1.json").write_bytes(encode_json(left))
    assert start(tmp_path, 2, ranks=range(1), absent_s=0.5) == [3]
    assert (
        "not begun; what lies there is of process 9 on desk, begun 20"
        in (tmp_path / "error-0").read_text()
    )

    taken = {**earlier, "state": "taken", "knows": {"1": earlier["run"]}}
    (folder / "rank-0.json").write_bytes(encode_json(taken))
    assert start(tmp_path, 2) == [0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), sums())


@pytest.mark.parametrize("count", [0, 1, 32, 33, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_shares_are_whole_batches_and_cover_all(count: int, size: int) -> None:
    shares = [RankShare(rank, size).range(count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert all(share.start % 32 == 0 for share in shares)


@pytest.mark.parametrize(
    ("rank", "size"), [("2", "2"), ("-1", "2"), ("0", "x"), ("", "2"), ("0", "0"), ("0", "99999")]
)
def test_ranks_that_cannot_be_are_refused(rank: str, size: str) -> None:
    with pytest.raises(UsageError, match="expected a rank from 0"):
        share_of_environment({"RANK": rank, "WORLD_SIZE": size})


def test_without_torchrun_there_is_one_process() -> None:
    assert share_of_environment({}) == share_of_environment({"RANK": "3"}) == RankShare()
    assert share_of_environment({"RANK": "1", "WORLD_SIZE": "4"}) == RankShare(1, 4)
