"""The form of the chunked softmax that CUDA runs: the same numbers as the one in place."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.losses.adadistill import AdaDistill
from fr_edge.distill.losses.margin_softmax import (
    ChunkStep,
    chunked_logsumexp,
    fused_logsumexp,
    online_softmax_step,
)
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.train import distill_student
from fr_edge.faces.sources import Faces

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU")


def numbers(batch: int, classes: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(batch)
    e = torch.nn.functional.normalize(torch.randn(batch, dim, generator=draw))
    raw = torch.randn(classes, dim, generator=draw) * 0.7
    labels = torch.randint(-1, classes, (batch,), generator=draw)
    return e, raw, 1 / raw.norm(dim=1), labels


@pytest.mark.parametrize(("batch", "classes", "dim"), [(5, 301, 16), (1, 2, 8), (33, 64, 12)])
@pytest.mark.parametrize("with_grad", [True, False])
def test_both_forms_agree(
    batch: int, classes: int, dim: int, with_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        margin_softmax, "_GPU_CHUNK_BYTES", 4 * batch * 70
    )  # several chunks, an odd last one
    e, raw, inverse, labels = numbers(batch, classes, dim)
    expected = chunked_logsumexp(e, raw, inverse, labels, 64.0, with_grad)
    result = fused_logsumexp(e, raw, inverse, labels, 64.0, with_grad, online_softmax_step)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_is_one_graph() -> None:
    e, raw, inverse, labels = numbers(6, 90, 16)
    whole = torch.compile(online_softmax_step, backend="aot_eager", fullgraph=True, dynamic=True)
    expected = fused_logsumexp(e, raw, inverse, labels, 64.0, True, online_softmax_step)
    result = fused_logsumexp(e, raw, inverse, labels, 64.0, True, whole)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_compiler_it_still_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiles(*_: object, **__: object) -> ChunkStep:
        def fails(*_: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            raise RuntimeError("Cannot find a working triton installation")

        return fails

    monkeypatch.setattr(torch, "compile", compiles)
    margin_softmax._compiled_step.cache_clear()
    e, raw, inverse, labels = numbers(4, 20, 8)
    result = fused_logsumexp(e, raw, inverse, labels, 64.0, True)
    again = fused_logsumexp(e, raw, inverse, labels, 64.0, True)  # warns once
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert re.search("uncompiled.*triton", caplog.text)
    margin_softmax._compiled_step.cache_clear()
    expected = chunked_logsumexp(e, raw, inverse, labels, 64.0, True)
    for a, b, third in zip(result, again, expected, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, third, rtol=1e-5, atol=1e-6)


def head_on(device: str, classes: int, dim: int) -> list[Tensor]:
    """Loss, gradient and centres of one step, on the CPU."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, dim, generator=draw)
    labels = torch.randperm(classes, generator=draw)[:64]
    torch.manual_seed(1)
    head = AdaDistill(classes, dim).to(device)
    x = student.to(device).requires_grad_()
    loss = head(x, teacher.to(device), labels.to(device))
    loss.backward()
    assert x.grad is not None
    return [loss.detach().cpu(), x.grad.cpu(), head.centres().cpu()]


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("classes", [5_000, 300_000])  # 300,000 are two chunks of a GPU
def test_on_a_gpu_the_head_gives_what_it_gives_on_a_cpu(classes: int) -> None:
    for a, b in zip(head_on("cpu", classes, 128), head_on("cuda", classes, 128), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
@needs_gpu
def test_on_a_gpu_the_head_is_one_kernel_between_its_products(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Compiled with Triton, and the numbers of the same steps one by one."""
    margin_softmax._compiled_step.cache_clear()
    values = [t.cuda() for t in numbers(33, 70_000, 64)]
    result = fused_logsumexp(*values, 64.0, True)
    plain = fused_logsumexp(*values, 64.0, True, online_softmax_step)
    assert "uncompiled" not in caplog.text, "is Triton installed?"
    for a, b in zip(result, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@needs_gpu
def test_on_a_gpu_no_matrix_of_batch_by_classes_is_made() -> None:
    batch, classes, dim = 128, 1_000_000, 64
    e, raw, inverse, labels = (t.cuda() for t in numbers(batch, classes, dim))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_logsumexp(e, raw, inverse, labels, 64.0, True)
    beyond = torch.cuda.max_memory_allocated() - before
    assert beyond < 4 * batch * classes  # the matrix alone would be 512 MB


@pytest.mark.cuda
@needs_gpu
def test_on_a_gpu_a_student_learns(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    """In bfloat16 where the GPU has it; the loss of the same few faces falls."""
    long = replace(recipe, epochs=6, amp="auto")
    result = distill_student(long, faces, tmp_path / "out", teacher=teacher)
    losses = [point["loss"] for point in result.report.curve]
    assert sum(losses[-3:]) < sum(losses[:3])
