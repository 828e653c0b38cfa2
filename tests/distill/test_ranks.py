"""Several processes over gloo: one loss and one set of centres, whatever their number."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fr_edge.bundle import open_bundle

_WORKER = Path(__file__).with_name("rank_worker.py")


def start(mode: str, folder: Path, size: int) -> list[tuple[int, str]]:
    """Run the worker in `size` processes; gives exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(_WORKER), mode, str(folder)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("alone")
    assert start("head", folder, 1)[0][0] == 0
    found: dict[str, torch.Tensor] = torch.load(folder / "rank-0.pt", weights_only=True)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_the_loss_and_the_centres_are_those_of_one_process(
    size: int, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for code, text in start("head", tmp_path, size):
        assert code == 0, text
    parts = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in range(size)]
    for part in parts:
        torch.testing.assert_close(part["losses"], alone["losses"])
        torch.testing.assert_close(part["alpha"], alone["alpha"])
    torch.testing.assert_close(torch.cat([p["raw"] for p in parts]), alone["raw"])
    torch.testing.assert_close(torch.cat([p["grads"] for p in parts], 1), alone["grads"])
    if size == 2:
        # The checkpoint of two, read by one and by four.
        for other in (1, 4):
            assert all(code == 0 for code, _ in start("reload", tmp_path, other))
            names = [tmp_path / f"again-{r}-of-{other}.pt" for r in range(other)]
            again = torch.cat([torch.load(name, weights_only=True) for name in names])
            assert torch.equal(again, torch.cat([p["raw"] for p in parts]))


def test_two_processes_train_one_student(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher.bundle")
    for code, text in start("train", tmp_path, 2):
        assert code == 0, text
    bundle = open_bundle(tmp_path / "out")
    assert '"ranks": 2' in bundle.file("reports/training.json").read_text(encoding="utf-8")


def test_processes_that_see_different_faces_stop(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher.bundle")
    for code, text in start("differ", tmp_path, 2):
        assert code != 0
        assert "DataError" in text
    assert not (tmp_path / "out" / "bundle.json").exists()
