"""Several processes over gloo: one loss and one set of centres, whatever their number."""

import multiprocessing
import shutil
import socket
from pathlib import Path
from runpy import run_path

import pytest
import torch
import torch.distributed as dist

from fr_edge.bundle.bundle import open_bundle
from fr_edge.distill.distributed import computes_bf16, join_ranks
from fr_edge.errors import DataError

_WORKER = Path(__file__).with_name("rank_worker.py")


def start(mode: str, folder: Path, size: int) -> list[int | None]:
    """Run the worker in `size` processes; gives their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server imports torch once; the processes are its forks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fr_edge.distill.train"])
    processes = []
    for rank in range(size):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        texts = {name: str(value) for name, value in env.items()} | {"MASTER_ADDR": "127.0.0.1"}
        given = {"MODE": mode, "FOLDER": folder, "ENV": texts}
        process = context.Process(target=run_path, args=(str(_WORKER), given, "__main__"))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("alone")
    assert start("head", folder, 1) == [0]
    result: dict[str, torch.Tensor] = torch.load(folder / "rank-0.pt", weights_only=True)
    return result


@pytest.mark.parametrize("size", [2, 4])
def test_the_loss_and_the_centres_are_those_of_one_process(
    size: int, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert start("head", tmp_path, size) == [0] * size
    parts = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in range(size)]
    for part in parts:
        torch.testing.assert_close(part["losses"], alone["losses"])
        torch.testing.assert_close(part["alpha"], alone["alpha"])
    torch.testing.assert_close(torch.cat([p["raw"] for p in parts]), alone["raw"])
    torch.testing.assert_close(torch.cat([p["grads"] for p in parts], 1), alone["grads"])
    if size == 2:
        # The checkpoint of two, read by one and by four.
        for other in (1, 4):
            assert start("reload", tmp_path, other) == [0] * other
            names = [tmp_path / f"again-{r}-of-{other}.pt" for r in range(other)]
            again = torch.cat([torch.load(name, weights_only=True) for name in names])
            assert torch.equal(again, torch.cat([p["raw"] for p in parts]))


def test_gradients_are_those_of_all_processes(tmp_path: Path) -> None:
    assert start("gradients", tmp_path, 2) == [0, 0]
    assert (tmp_path / "passed-1").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_run_does_not_depend_on_the_number_of_processes(optimizer: str, tmp_path: Path) -> None:
    """Where BatchNorm takes its statistics over as many images: the losses, and how the first step
    moves weights and statistics, but for the order of sums. Adam's first step is that of a gradient's
    sign, which sums in another order turn where it is zero: with Muon the running statistics alone."""
    for size in (1, 2):
        assert start(optimizer, tmp_path, size) == [0] * size
    one, two = (torch.load(tmp_path / f"run-{size}.pt", weights_only=True) for size in (1, 2))
    torch.testing.assert_close(two["losses"][0], one["losses"][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-3, atol=0)
    assert one["losses"][2] != one["losses"][0]
    for name, value in one.items():
        if value.is_floating_point() and (optimizer == "sgd" or "running" in name):
            rounding = 1.2e-7 * value.numel() ** 0.5  # of weights near 1, of which these are moves
            assert (two[name] - value).norm() <= 0.01 * value.norm() + rounding, name


def test_two_processes_train_one_student(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher.bundle")
    assert start("train", tmp_path, 2) == [0, 0]
    bundle = open_bundle(tmp_path / "out")
    assert '"ranks": 2' in bundle.file("reports/training.json").read_text(encoding="utf-8")


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    """The second process's `track` is silent, so the first gets it."""
    assert start("stop", tmp_path, 2) == [143, 143]
    kept = [(tmp_path / f"kept-{rank}").read_text() for rank in (0, 1)]
    assert kept[0].startswith(kept[1])
    assert kept[1].startswith("the training is kept up to step 1 of 3")
    (tmp_path / "again").touch()
    assert start("stop", tmp_path, 1) == [0]  # another number of processes goes on
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_processes_that_see_different_faces_stop(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher.bundle")
    assert start("differ", tmp_path, 2) == [4, 4]
    assert "another recipe, data" in (tmp_path / "error-1").read_text()
    assert not (tmp_path / "out" / "bundle.json").exists()


def test_statistics_are_the_mean_of_all_processes(tmp_path: Path) -> None:
    assert start("statistics", tmp_path, 2) == [0, 0]
    assert (tmp_path / "passed-1").exists()


def test_a_folder_that_not_all_processes_see_is_told_before_the_first_step(tmp_path: Path) -> None:
    """Else at the first resumption, when the checkpoints hold a part of the centres."""
    (tmp_path / "elsewhere").touch()
    assert start("stop", tmp_path, 2) == [4, 4]
    for rank in (0, 1):
        assert "is not seen by rank 1" in (tmp_path / f"error-{rank}").read_text()


class _Group:
    """A double of torch.distributed: who closes the group is of interest."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("WORLD_SIZE", "2")
        for name in ("init_process_group", "destroy_process_group"):
            patch.setattr(dist, name, lambda *_, name=name, **__: self.calls.append(name))
        patch.setattr(dist, "get_rank", lambda: 0)


def test_an_error_does_not_wait_for_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL, which is not here, would wait in closing the group for processes that wait for this one."""
    group = _Group()
    group.patch(monkeypatch)
    with pytest.raises(DataError), join_ranks():
        raise DataError("a disk is full")
    assert group.calls == ["init_process_group"]
    with join_ranks() as ranks:
        assert ranks.size == 2
    assert group.calls == ["init_process_group", "init_process_group", "destroy_process_group"]


@pytest.mark.parametrize(("capability", "computes"), [((7, 5), False), ((8, 0), True)])
def test_gpus_before_ampere_emulate_bfloat16(
    capability: tuple[int, int], computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # by emulation too
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert computes_bf16() is computes
