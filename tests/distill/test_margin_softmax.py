"""The form of the chunked softmax that CUDA runs: the same numbers as the one in place."""

import re

import pytest
import torch
from torch import Tensor

from fr_edge.distill import margin_softmax
from fr_edge.distill.adadistill import AdaDistill
from fr_edge.distill.margin_softmax import (
    ChunkStep,
    chunked_logsumexp,
    fused_logsumexp,
    online_softmax_step,
)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_head_gives_what_it_gives_on_a_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 128, generator=draw)
    labels = torch.randint(0, 5000, (64,), generator=draw)
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        head = AdaDistill(5000, 128).to(device)
        x = student.to(device).requires_grad_()
        loss = head(x, teacher.to(device), labels.to(device))
        loss.backward()
        assert x.grad is not None
        results.append((loss.detach().cpu(), x.grad.cpu(), head.centres().cpu()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
