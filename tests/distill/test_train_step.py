"""A step on a GPU: the host reads no value of a tensor, so it goes on while the GPU computes.

The device "meta" has shapes and no values: reading one raises, and so does any operation whose result's
shape depends on values. It takes the branches of a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fr_edge.distill import student
from fr_edge.distill.dataset import Batch, IdentitySplit
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.student import copied_ahead, device_batch
from fr_edge.distill.train_step import (
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
