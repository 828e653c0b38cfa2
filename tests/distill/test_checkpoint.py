"""Checkpoints when the disk is full or the file is damaged."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from fr_edge.distill.adadistill import AdaDistill
from fr_edge.distill.checkpoint import restore_checkpoint, save_checkpoint
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.errors import MachineError, ModelError


def new_run(step: int) -> TrainState:
    run = start_training(read_recipe("tiny", [f"seed={step}"]), 6, 16, Ranks())
    run.step = step
    return run


def centres(run: TrainState) -> torch.Tensor:
    assert isinstance(run.head, AdaDistill)
    return run.head.centres()


@pytest.mark.parametrize("name", ["torch.save", "numpy.save"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = new_run(3)
    save_checkpoint(tmp_path, good, {})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        with pytest.raises(MachineError, match="No space left"):
            save_checkpoint(tmp_path, new_run(4), {})
    again = new_run(0)
    assert restore_checkpoint(tmp_path, again, {})
    assert again.step == 3
    assert torch.equal(centres(again), centres(good))
    save_checkpoint(tmp_path, new_run(5), {})
    assert [p.name for p in tmp_path.glob("centres-*")] == ["centres-5-0.npy"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_run(3), {})
    next(tmp_path.glob("centres-*")).unlink()
    with pytest.raises(ModelError, match="centres of step 3"):
        restore_checkpoint(tmp_path, new_run(0), {})
    data = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"last\.pt"):
        restore_checkpoint(tmp_path, new_run(0), {})
    assert not restore_checkpoint(tmp_path / "nowhere", new_run(0), {})
