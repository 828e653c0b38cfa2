"""A step on a GPU: the host reads no value of a tensor, so it goes on while the GPU computes.

The device "meta" has shapes and no values: reading one raises, and so does any operation whose result's
shape depends on values. It takes the branches of a GPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fr_edge.distill import student
from fr_edge.distill.checkpoint import restore_checkpoint, save_checkpoint
from fr_edge.distill.dataset import Batch, IdentitySplit
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.muon import Muon
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.student import copied_ahead, device_batch
from fr_edge.distill.train_step import (
    TrainState,
    _update_average,
    check_finite_steps,
    enable_fake_quant,
    start_training,
    train_step,
)
from fr_edge.errors import GateFailed, UsageError

META = torch.device("meta")


class CpuGenerator(torch.Generator):
    """Draws for a device that has no generator."""

    def __new__(cls, device: Any = None) -> "CpuGenerator":
        return super().__new__(cls)


@pytest.fixture
def gpu_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it has no "meta"
    step = margin_softmax.online_softmax_step
    monkeypatch.setattr(margin_softmax, "_compiled_step", lambda: step)
    monkeypatch.setattr(torch, "Generator", CpuGenerator)


@pytest.mark.usefixtures("gpu_branches")
@pytest.mark.parametrize(
    "changes",
    [
        [
            "losses=adadistill,bank,cosine,relational,elasticface,cosface",
            "sample=0.4",
            "accumulate=2",
        ],
        ["losses=adadistill,arcface", "compat=official", "margin=cosface", "qat=int8", "ema=0.9"],
        ["losses=centres,mse,adaface", "sample=0.4", "optimizer=adamw"],
        ["losses=adadistill,cosine", "margin=adaface"],
        ["losses=bank,arcface", "qat=int8", "optimizer=muon"],
    ],
)
def test_the_host_reads_no_value(changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    classes, ranks = 40, Ranks(device=META)
    state = start_training(read_recipe("tiny", ["batch=8", *changes]), classes, 16, ranks)
    draw = np.random.default_rng(0)
    if state.recipe.qat:
        enable_fake_quant(state)
    make = torch.tensor

    def on_host_alone(values: Any, **options: Any) -> torch.Tensor:
        # Copied to a GPU, they would come from memory that is not pinned, for which the host waits.
        assert options.get("device", "cpu") == "cpu"
        return make(values, **options)

    monkeypatch.setattr(torch, "tensor", on_host_alone)
    for _ in range(2):
        faces = draw.integers(0, 256, (8, 112, 112, 3), np.uint8)
        target = draw.normal(size=(8, 16)).astype(np.float32)
        means = train_step(state, device_batch(faces, np.arange(8), target, classes, META), 0.1)
    assert {"loss"} < set(means)
    assert all(value.device == META for value in means.values())
    with pytest.raises(RuntimeError, match="meta"):
        check_finite_steps(state, 0.1)  # which does read: the test could fail


class StreamDouble:
    """In the place of a CUDA stream: writes down what it is told, in order."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def record_event(self) -> str:
        self.calls.append(f"{self.name} records")
        return "event"

    def wait_event(self, event: str) -> None:
        self.calls.append(f"{self.name} waits for the {event}")


class ValuesDouble:
    """In the place of a CUDA tensor."""

    def __init__(self, kind: str, calls: list[str]) -> None:
        self.kind, self.calls = kind, calls

    def record_stream(self, stream: StreamDouble) -> None:
        self.calls.append(f"{self.kind} kept for {stream.name}")


def test_a_batch_is_copied_while_the_step_before_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    inside: list[str] = ["computing"]

    @contextmanager
    def stream(entered: StreamDouble) -> Iterator[None]:
        inside.append(entered.name)
        yield
        inside.pop()

    def copy(values: npt.NDArray[Any], device: torch.device) -> Any:
        calls.append(f"{values.dtype} goes by {inside[-1]}")
        return ValuesDouble(str(values.dtype), calls)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: StreamDouble("copying", calls))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: StreamDouble("computing", calls)
    )
    monkeypatch.setattr(student, "to_device", copy)
    index = np.arange(2)
    split = IdentitySplit(index, index, 2, index, index)
    pixels = np.zeros((2, 112, 112, 3), np.uint8)
    source = [Batch(pixels, index, index == 1, index)] * 3
    targets = lambda batch: np.zeros((2, 4), np.float32)  # noqa: E731
    for _ in copied_ahead(source, split, targets, torch.device("cuda")):
        calls.append("step")
    kinds = ("float32", "uint8", "int64")
    copied = [*(f"{kind} goes by copying" for kind in kinds), "copying records"]
    waited = ["computing waits for the event"]
    waited += [f"{kind} kept for computing" for kind in ("uint8", "int64", "float32")]
    step = [*waited, "step"]
    assert calls == [*copied, *copied, *step, *copied, *step, *step]


def test_what_is_not_finite_is_found_later_with_its_step() -> None:
    state = start_training(read_recipe("tiny", ["losses=arcface"]), 10, 16, Ranks())
    check_finite_steps(state, 0.1)
    state.failed = torch.tensor(17)
    with pytest.raises(GateFailed, match="at step 17 "):
        check_finite_steps(state, 0.1)


def test_a_label_that_is_no_class_is_refused_on_the_host() -> None:
    with pytest.raises(UsageError, match="label 10 does not fit 10 classes"):
        device_batch(np.zeros((2, 112, 112, 3), np.uint8), np.array([0, 10]), None, 10, META)


def averaging(ema: float) -> TrainState:
    changes = [f"ema={ema}", "losses=arcface", "batch=4", "lr=0.05", "amp=off"]
    return start_training(read_recipe("tiny", changes), 10, 16, Ranks())


def one_step(state: TrainState) -> dict[str, torch.Tensor]:
    """A step on a batch of its own; the weights after it."""
    faces = np.random.default_rng(state.step).integers(0, 256, (4, 112, 112, 3), np.uint8)
    train_step(state, device_batch(faces, np.arange(4), None, 10, torch.device("cpu")), 0.05)
    state.step += 1
    return {name: value.clone() for name, value in state.network.state_dict().items()}


@pytest.mark.parametrize("ema", [0.22, 0.9999])
def test_averaged_weights_forget_the_start(ema: float, tmp_path: Path) -> None:
    """Decays of 2/11, 3/12, 4/13, ... up to `ema`; a resumption goes on with the next one."""
    state = averaging(ema)
    plain = {name: value.double() for name, value in state.averaged.items()}
    for update in range(1, 6):
        decay = min(ema, (1 + update) / (10 + update))
        for name, value in one_step(state).items():
            if value.is_floating_point():
                plain[name] = decay * plain[name] + (1 - decay) * value
            else:
                plain[name] = value.double()
        if update == 2:
            save_checkpoint(tmp_path, state, {})
    resumed = averaging(ema)
    assert restore_checkpoint(tmp_path, resumed, {})
    for _ in range(3):
        weights = one_step(resumed)
    for name, value in state.averaged.items():
        torch.testing.assert_close(value.double(), plain[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(resumed.averaged[name], value)
        assert not value.requires_grad
    assert state.averaged.keys() == weights.keys()
    moved = [torch.equal(value, weights[name]) for name, value in state.averaged.items()]
    assert not all(moved)  # an average, not the last weights


class OperationCounter(TorchDispatchMode):
    """Counts what reaches the device: on a GPU the start of each costs the host's time."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_the_average_takes_one_operation_for_all_weights() -> None:
    state = averaging(0.9)
    with OperationCounter() as counter:
        _update_average(state)
    assert counter.counts == {"aten._foreach_lerp_.Scalar": 1, "aten._foreach_copy_.default": 1}


def test_matrices_of_one_shape_move_in_as_many_operations_as_one() -> None:
    counts = []
    for size in (1, 5):
        weights = [nn.Parameter(torch.ones(6, 4, 1, 1)) for _ in range(size)]
        muon = Muon([{"params": weights, "matrices": True}], 0.1, 0.1)
        for _ in range(2):  # the first makes the buffers
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            with OperationCounter() as counter:
                muon.step()
        counts.append(counter.counts)
    assert counts[0] == counts[1]
    assert counts[0]["aten.bmm.default"] + counts[0]["aten.baddbmm.default"] == 3 * 5
