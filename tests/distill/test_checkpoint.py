"""Checkpoints when the disk is full, not shared or the file is damaged, and what they may go on with."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fr_edge.distill.checkpoint import check_shared, restore_checkpoint, save_checkpoint
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses.adadistill import AdaDistill
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.distill.training_report import training_key
from fr_edge.errors import DataError, GateFailed, MachineError, ModelError, UsageError
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import Faces


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
    save_checkpoint(tmp_path, new_run(3), {"m": 0.1})
    assert restore_checkpoint(tmp_path, new_run(0), {"m": 0.1, "balanced": False})
    with pytest.raises(UsageError, match="balanced = False; this one has True"):
        restore_checkpoint(tmp_path, new_run(0), {"m": 0.1, "balanced": True})


def test_the_learning_rate_may_change_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = {"lr": 0.1, "warmup": 0.0, "patience": 0, "verify_every": 1.0, "m": 0.5}
    save_checkpoint(tmp_path, new_run(3), held)
    assert restore_checkpoint(tmp_path, new_run(0), held)
    assert not caplog.records
    changed = {"lr": 0.05, "warmup": 0.1, "patience": 2, "verify_every": 0.5}
    assert restore_checkpoint(tmp_path, new_run(0), held | changed)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} was {held[name]} up to step 3; it is {value} from there on"
        for name, value in changed.items()
    ]
    with pytest.raises(UsageError, match=r"m = 0\.5; this one has 0\.4"):
        restore_checkpoint(tmp_path, new_run(0), held | {"m": 0.4})


def two_people(faces: Faces, where: str, second: int) -> dict[str, Pairs]:
    """A set of two pairs, which differs in its second one."""
    same = np.array([True, False])
    return {
        "a": Pairs(
            replace(faces, where=where), np.arange(2), np.arange(2), np.array([1, second]), same
        )
    }


def test_a_checkpoint_goes_on_by_contents_and_not_by_paths(faces: Faces, tmp_path: Path) -> None:
    for name, data in (("here", b"1"), ("there", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").write_bytes(data)

    def key(init: str, pairs: str = "here", second: int = 9, **changes: Any) -> dict[str, Any]:
        recipe = replace(read_recipe("tiny"), verify_pairs=(f"{pairs}/a.csv",), **changes)
        recipe = replace(recipe, init=str(tmp_path / init))
        return training_key(recipe, None, "", two_people(faces, pairs, second))

    def goes_on(**asked: Any) -> bool:
        return restore_checkpoint(tmp_path, new_run(0), key(**asked))

    save_checkpoint(tmp_path, new_run(3), key("here"))
    assert goes_on(init="there/model.pt", exclude="list.csv", compile=True)
    with pytest.raises(UsageError, match="with init = .*here'; this one has .*other'\n"):
        goes_on(init="other")
    (tmp_path / "here" / "model.pt").write_bytes(b"2")
    with pytest.raises(UsageError, match="with init = .*here' of other content"):
        goes_on(init="here")
    # Sets that choose neither the weights nor the end.
    assert goes_on(init="there", pairs="there", second=8)
    with pytest.raises(UsageError, match="verify_pairs"):
        goes_on(init="there", pairs="there", second=8, patience=2)
    save_checkpoint(tmp_path, new_run(3), key("there", best="accuracy"))
    assert goes_on(init="there", pairs="there", best="accuracy")
    with pytest.raises(UsageError, match="verify_pairs = .*of other content"):
        goes_on(init="there", second=8, best="accuracy")
    # An earlier fr-edge kept paths alone.
    old = {name: value for name, value in key("here").items() if name != "contents"}
    save_checkpoint(tmp_path, new_run(3), old | {"exclude": "a.csv", "compile": False})
    assert goes_on(init="here")
    with pytest.raises(UsageError, match="with init = .*here'; this one has .*there'\n"):
        goes_on(init="there")


@dataclass(frozen=True)
class _OneOfTwo(Ranks):
    """A double of two processes: the other one says what `others` lists, then nothing."""

    others: Callable[[], int] = lambda: 0

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        other = torch.full_like(values, self.others())
        return torch.cat([values, other] if self.rank == 0 else [other, values])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def barrier(self) -> None:
        pass


class _Clock:
    """Seconds that pass by sleeping alone; after a minute `happens` is called."""

    def __init__(self, happens: Callable[[], object] = lambda: None) -> None:
        self.now, self.happens = 0.0, happens

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now == 60:
            self.happens()


def test_ranks_that_do_not_see_one_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rank 0 wrote comes in sight of another node after a minute, as on NFS, or never."""
    token = tmp_path / "nfs" / f"shared-{7:016x}"
    token.parent.mkdir()
    clock = _Clock(token.touch)
    monkeypatch.setattr("fr_edge.distill.checkpoint.time", clock)

    def second() -> Ranks:
        said = [7]  # its token, then that nothing is wrong
        return _OneOfTwo(1, 2, others=lambda: said.pop() if said else 0)

    check_shared(token.parent, second())
    assert clock.now == 60
    with pytest.raises(DataError, match="is not seen by rank 1") as caught:
        check_shared(tmp_path / "own", second())
    assert clock.now == 150
    assert "all nodes share" in caught.value.hint
    assert not (tmp_path / "own").exists()
    check_shared(tmp_path / "out", _OneOfTwo(0, 2))
    assert list((tmp_path / "out").iterdir()) == []
    said = [1, 0, 7]  # at last that the second rank does not see it
    with pytest.raises(DataError, match="is not seen by rank 1"):
        check_shared(tmp_path / "out", _OneOfTwo(0, 2, others=said.pop))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot be written to"):
        check_shared(tmp_path / "file" / "out", _OneOfTwo(0, 2))


def test_a_checkpoint_without_all_shards_does_not_replace_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, new_run(3), {})
    before = (tmp_path / "last.pt").read_bytes()
    run = new_run(4)
    run.ranks = _OneOfTwo(0, 2)
    clock = _Clock()
    monkeypatch.setattr("fr_edge.distill.checkpoint.time", clock)
    with pytest.raises(DataError, match="shards of step 4"):
        save_checkpoint(tmp_path, run, {})
    assert clock.now == 90
    assert (tmp_path / "last.pt").read_bytes() == before
    again = new_run(0)
    assert restore_checkpoint(tmp_path, again, {})
    assert again.step == 3
    # The other rank's classes are 3 to 5.
    clock = _Clock((tmp_path / "adadistill-raw-4-3.npy").touch)
    monkeypatch.setattr("fr_edge.distill.checkpoint.time", clock)
    save_checkpoint(tmp_path, run, {})
    assert clock.now == 60
    assert (tmp_path / "last.pt").read_bytes() != before


@pytest.mark.parametrize("where", ["weight", "statistic", "centre", "average"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_kept(value: float, where: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_run(3), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    run = new_run(4)
    run.averaged = {name: v.clone() for name, v in run.network.state_dict().items()}
    spoiled = {
        "weight": next(run.student.parameters()).detach(),
        "statistic": next(b for n, b in run.network.named_buffers() if n.endswith("running_var")),
        "centre": run.loss.class_shards()["adadistill"][2]["raw"],
        "average": next(iter(run.averaged.values())),
    }[where]
    spoiled[-1] = value
    with pytest.raises(GateFailed, match="not finite") as caught:
        save_checkpoint(tmp_path, run, {})
    assert "lower lr" in caught.value.hint
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


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
    save_checkpoint(tmp_path, new_run(3), {"m": 1.0})
    good = torch.load(tmp_path / "last.pt", weights_only=True)
    run = new_run(0)
    accepted = []
    for name, content in damaged(good).items():
        torch.save(content, tmp_path / "last.pt")
        try:
            restore_checkpoint(tmp_path, run, {"m": 1.0})
            accepted.append(name)
        except (ModelError, UsageError):  # UsageError: another training's
            pass
    # Plain values that a training may have written, and names that are not looked at.
    assert accepted == [
        f"seconds {1 << 70}",
    ]
