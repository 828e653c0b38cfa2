"""Checkpoints when the disk is full or the file is damaged."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from fr_edge.distill.checkpoint import restore_checkpoint, save_checkpoint
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses.adadistill import AdaDistill
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.errors import MachineError, ModelError, UsageError


def new_run(step: int) -> TrainState:
    run = start_training(read_recipe("tiny", [f"seed={step}"]), 6, 16, Ranks())
    run.step = step
    return run


def centres(run: TrainState) -> torch.Tensor:
    head = run.loss.terms["adadistill"]
    assert isinstance(head, AdaDistill)
    return head.centres()


def test_a_checkpoint_from_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    """Where the option has its default, which changes nothing."""
    save_checkpoint(tmp_path, new_run(3), {"lr": 0.1})
    assert restore_checkpoint(tmp_path, new_run(0), {"lr": 0.1, "balanced": False})
    with pytest.raises(UsageError, match="balanced = False; this one has True"):
        restore_checkpoint(tmp_path, new_run(0), {"lr": 0.1, "balanced": True})


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
    assert [p.name for p in tmp_path.glob("adadistill-*")] == ["adadistill-raw-5-0.npy"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_buffers_are_those_of_the_optimizer(optimizer: str, tmp_path: Path) -> None:
    """A part of AdamW's buffers, or another optimizer's, was a KeyError at the next step."""
    changes = [f"optimizer={optimizer}", "seed=1", "batch=8"]

    def run() -> TrainState:
        return start_training(read_recipe("tiny", changes), 6, 16, Ranks())

    one = run()
    for parameter in one.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.optimizer.step()
    save_checkpoint(tmp_path, one, {})
    other = run()
    assert restore_checkpoint(tmp_path, other, {})
    saved, held = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert saved.keys() == held.keys()
    assert all(torch.equal(v, held[n][name]) for n in saved for name, v in saved[n].items())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    number, buffers = next(iter(content["optimizer"]["state"].items()))
    shape = next(iter(one.optimizer.param_groups[0]["params"]))
    wrong: list[dict[str, Any]] = [
        dict.fromkeys(("momentum_buffer", "exp_avg"), torch.zeros_like(shape)),
        {"exp_avg": torch.zeros_like(shape)},
        {**buffers, "more": torch.zeros(())},
    ]
    for odd in wrong:
        content["optimizer"]["state"][number] = odd
        torch.save(content, tmp_path / "last.pt")
        with pytest.raises(ModelError, match="not of this optimizer"):
            restore_checkpoint(tmp_path, run(), {})


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_run(3), {})
    next(tmp_path.glob("adadistill-*")).unlink()
    with pytest.raises(ModelError, match="lacks a part of adadistill-raw-3"):
        restore_checkpoint(tmp_path, new_run(0), {})
    data = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"last\.pt"):
        restore_checkpoint(tmp_path, new_run(0), {})
    assert not restore_checkpoint(tmp_path / "nowhere", new_run(0), {})


def damaged(content: dict[str, Any]) -> dict[str, Any]:
    """What -> a file's content; each is of another type or form than a training writes."""
    wrong = (1 << 70, {1: 2})
    changed: dict[str, Any] = {"list": [1], "none": None, "empty": {}}
    for name in content:
        if name != "sums":  # which an earlier fr-edge left out
            changed[f"no {name}"] = {k: v for k, v in content.items() if k != name}
        for value in (*wrong, torch.zeros(3, device="meta")):
            changed[f"{name} {value}"] = {**content, name: value}
    state = content["optimizer"]["state"]
    for buffer in ("text", torch.zeros(2, 3, 5), torch.zeros(1).to_sparse()):
        odd = {number: {"momentum_buffer": buffer} for number in state or (0,)}
        changed[f"buffer {buffer}"] = {**content, "optimizer": {"state": odd}}
    changed["another option"] = {**content, "optimizer": {"state": {0: {"step": "text"}}}}
    changed["a missing buffer"] = {
        **content,
        "optimizer": {"state": {1 << 40: {"momentum_buffer": None}}},
    }
    changed["accuracy"] = {**content, "verification": [{"step": 1, "accuracy": "<b>"}]}
    return changed


def test_a_checkpoint_of_a_stranger_is_refused_or_harmless(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_run(3), {"lr": 1.0})
    good = torch.load(tmp_path / "last.pt", weights_only=True)
    run = new_run(0)
    accepted = []
    for name, content in damaged(good).items():
        torch.save(content, tmp_path / "last.pt")
        try:
            restore_checkpoint(tmp_path, run, {"lr": 1.0})
            accepted.append(name)
        except (ModelError, UsageError):  # UsageError: another training's
            pass
    # Plain values that a training may have written, and names that are not looked at.
    assert accepted == [
        f"seconds {1 << 70}",
    ]
