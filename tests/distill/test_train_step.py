"""A step on a GPU: the host reads no value of a tensor, so it goes on while the GPU computes.

The device "meta" has shapes and no values: reading one raises, and so does any operation whose result's
shape depends on values. It takes the branches of a GPU.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fr_edge.distill import train_step as steps
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.student import to_device
from fr_edge.distill.train_step import check_finite_steps, start_training, train_step
from fr_edge.errors import GateFailed, UsageError

META = torch.device("meta")


@pytest.fixture
def gpu_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it has no "meta"
    step = margin_softmax.online_softmax_step
    monkeypatch.setattr(margin_softmax, "_compiled_step", lambda: step)


@pytest.mark.usefixtures("gpu_branches")
@pytest.mark.parametrize(
    "changes",
    [
        ["losses=adadistill,bank:20,cosine,relational", "ema=0.9", "accumulate=2"],
        ["losses=adadistill", "compat=official", "margin=cosface"],
        ["losses=centres,mse", "optimizer=adamw"],
    ],
)
def test_the_host_reads_no_value(changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of a batch goes to the device by the copy that does not wait."""
    copied = []

    def copy(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
        copied.append(values.dtype.name)
        return to_device(values, device)

    monkeypatch.setattr(steps, "to_device", copy)
    state = start_training(read_recipe("tiny", ["batch=8", *changes]), 10, 16, Ranks(device=META))
    draw = np.random.default_rng(0)
    for _ in range(2):
        means = train_step(
            state,
            draw.integers(0, 256, (8, 112, 112, 3), np.uint8),
            np.arange(8),
            draw.normal(size=(8, 16)).astype(np.float32),
            0.1,
        )
    assert set(copied) == {"uint8", "float32", "int64"}
    assert {"loss"} < set(means)
    assert all(value.device == META for value in means.values())
    with pytest.raises(RuntimeError, match="meta"):
        check_finite_steps(state, 0.1)  # which does read: the test could fail


def test_what_is_not_finite_is_found_later_with_its_step() -> None:
    state = start_training(read_recipe("tiny", ["losses=arcface"]), 10, 16, Ranks())
    check_finite_steps(state, 0.1)
    state.failed = torch.tensor(17)
    with pytest.raises(GateFailed, match="at step 17 "):
        check_finite_steps(state, 0.1)


def test_a_label_that_is_no_class_is_refused_on_the_host() -> None:
    state = start_training(read_recipe("tiny", ["losses=arcface"]), 10, 16, Ranks())
    with pytest.raises(UsageError, match="label 10 does not fit 10 classes"):
        train_step(state, np.zeros((2, 112, 112, 3), np.uint8), np.array([0, 10]), None, 0.1)
