"""Layers that compute on what INT8 will leave of their input and weights.

Rounding is what calibration writes as Q and DQ: symmetric, one step per input tensor and one per
output channel of the weights, in dense layers alone. A BatchNorm behind a layer needs no folding:
its factor scales a channel's weights and their step alike, so rounding before or after it is the
same. The steps of the inputs are learned (LSQ, arXiv 1902.08153). torch.ao.quantization, which has
such layers, is announced to be deleted from PyTorch. Knows nothing of trainings or files.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOW, HIGH = -128, 127

_TINY = 1e-12

_MOST = 1.05

_SHARES = torch.linspace(0.05, 1.0, 96)

_SAMPLE = 1 << 15


class _Rounded(torch.autograd.Function):
    """`x (...)`, `step ()` > 0 -> whole steps of x, -128..127, times step; the derivatives of LSQ,
    that by the step scaled so that steps learn as fast as weights do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return (x.float() / step).round_().clamp_(LOW, HIGH).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, step = ctx.saved_tensors
        n = x.float() / step
        inside = (n >= LOW) & (n <= HIGH)
        slope = n.round().clamp_(LOW, HIGH).sub_(n.mul_(inside)).mul_(grads[0])
        scale = (x[0].numel() * HIGH) ** -0.5
        return grads[0] * inside, slope.sum(dtype=torch.float32) * scale


class _Rounds(nn.Module):
    """A dense layer that rounds once it has a step and is told to."""

    weight: Tensor
    step: nn.Parameter | None
    rounds = False

    def rounded(self, x: Tensor) -> Tensor:
        """The layer's input as INT8 has it, or as it is."""
        if not self.rounds:
            return x
        out: Tensor = _Rounded.apply(x, self.step)  # type: ignore[no-untyped-call]
        return out

    def rounded_weight(self) -> Tensor:
        """The weights, a step of a channel being its largest over 127; derivatives pass through."""
        w = self.weight
        if not self.rounds:
            return w
        with torch.no_grad():
            step = w.abs().amax(tuple(range(1, w.ndim)), keepdim=True).div_(HIGH).clamp_min_(_TINY)
            lost = (w / step).round_().mul_(step).sub_(w)
        return w + lost


class Conv2d(_Rounds, nn.Conv2d):
    """A convolution; grouped ones never round."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter("step", None)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.rounded(x), self.rounded_weight()
        if self.groups > 1 and self.stride != (1, 1) and _trains_in_bf16(x):
            # The derivatives of a strided depthwise convolution take ten times its unstrided
            # form's on a CPU, in bfloat16 (torch 2.13, AMD EPYC with AVX-512, 2026-11-25).
            wide: Tensor = nn.functional.conv2d(
                x, weight, self.bias, 1, self.padding, self.dilation, self.groups
            )
            return wide[:, :, :: self.stride[0], :: self.stride[1]]
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class Linear(_Rounds, nn.Linear):
    """A matrix product."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter("step", None)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.rounded(x), self.rounded_weight(), self.bias)


def _trains_in_bf16(x: Tensor) -> bool:
    return not x.is_cuda and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def fake_quant_layers(network: nn.Module) -> Iterator[tuple[str, Conv2d | Linear]]:
    """The layers that can round, by name, in the order in which they compute."""
    for name, module in network.named_modules():
        if isinstance(module, Linear) or (isinstance(module, Conv2d) and module.groups == 1):
            yield name, module


def add_scales(network: nn.Module) -> list[nn.Parameter]:
    """Give every layer a step to learn, 0 for now; rounds nothing yet. Returns the steps."""
    steps = []
    for _, layer in fake_quant_layers(network):
        layer.step = nn.Parameter(torch.zeros((), device=layer.weight.device))
        steps.append(layer.step)
    return steps


def start_fake_quant(network: nn.Module) -> None:
    """Round from now on, with the steps that the layers have."""
    for _, layer in fake_quant_layers(network):
        layer.rounds = True


@contextmanager
def init_scales(network: nn.Module, agree: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts each layer that the network comes to finds its step, the one with the least
    squared error, and rounds from then on; `agree` makes one step of those of several ranks."""

    def found(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _Rounds)
        assert layer.step is not None
        layer.step.copy_(agree(best_scale(given[0])))
        layer.rounds = True

    hooks = [layer.register_forward_pre_hook(found) for _, layer in fake_quant_layers(network)]
    network.train()  # as in the steps to come: running statistics lag behind, early on by far
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def best_scale(x: Tensor) -> Tensor:
    """The step `()` whose rounding errs least on `x`, judged on up to 65,536 of its values."""
    x = x.detach().float()
    largest = x.abs().max().clamp_min(_TINY)
    flat = x.reshape(-1)
    flat = flat[:: 1 + len(flat) // (2 * _SAMPLE)]
    steps = _SHARES.to(x.device) * largest / HIGH
    errors = [((flat / s).round_().clamp_(LOW, HIGH) * s - flat).square().sum() for s in steps]
    return steps[torch.stack(errors).argmin()]


@contextmanager
def steady_scales(network: nn.Module) -> Iterator[None]:
    """Around an update: no step moves by more than 5 %. One that a large gradient carries to 0
    would take all numbers with it."""
    steps = [layer.step for _, layer in fake_quant_layers(network) if layer.step is not None]
    before = [step.detach().clone() for step in steps]
    yield
    with torch.no_grad():
        for step, old in zip(steps, before, strict=True):
            step.clamp_(old / _MOST, old * _MOST)


def split_scales(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A state dict without its steps, and layer -> the largest magnitude its input can have,
    127 steps, in the order in which they compute."""
    plain = {name: value for name, value in state.items() if not name.endswith(".step")}
    ranges = {
        name.removesuffix(".step"): HIGH * float(value)
        for name, value in state.items()
        if name.endswith(".step")
    }
    return plain, ranges
