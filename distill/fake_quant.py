"""Fake quantization: layers that train on the rounding which INT8 will do.

The rounding is what calibration writes as Q and DQ: symmetric, one scale per input tensor and one per
output channel of the weights, in dense layers alone. A BatchNorm behind a layer needs no folding: its
factor scales a channel's weights and their scale alike, so rounding before or after it is the same.
Scales of inputs are learned (LSQ, arXiv 1902.08153). torch.ao.quantization is not used: PyTorch has
announced its removal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_LOW, _HIGH = -128, 127  # of INT8
_EPS = 1e-12  # smallest scale of weights
_MAX_SCALE_CHANGE = 1.05  # of a learned scale in one optimizer step
_CLIPPINGS = torch.linspace(0.05, 1.0, 96)  # shares of the largest magnitude tried as first range
_SAMPLE = 1 << 16  # values of a tensor that its first scale is judged on


class _FakeQuantize(torch.autograd.Function):
    """`x (...)`, `scale ()` > 0 -> clamp(round(x / scale), -128, 127) * scale.

    Gradients of LSQ (arXiv 1902.08153, section 2): that of x passes inside the range; that of the
    scale is multiplied by 1 / sqrt(values per face * 127), so that scales learn as fast as weights.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return (x.float() / scale).round_().clamp_(_LOW, _HIGH).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale = ctx.saved_tensors
        n = x.float() / scale
        inside = (n >= _LOW) & (n <= _HIGH)
        slope = n.round().clamp_(_LOW, _HIGH).sub_(n.mul_(inside)).mul_(grads[0])
        factor = (x[0].numel() * _HIGH) ** -0.5
        return grads[0] * inside, slope.sum(dtype=torch.float32) * factor


class FakeQuantLayer(nn.Module):
    """A dense layer that can round its input and weights as INT8 does.

    Attributes:
        weight: Output channels first.
        scale: Learned scale of the input, `()`; None until `add_scales`.
        enabled: Whether the layer rounds.
    """

    weight: Tensor
    scale: nn.Parameter | None
    enabled = False

    def enable(self) -> None:
        """Round from now on, and learn the scale."""
        assert self.scale is not None
        self.enabled = True
        self.scale.requires_grad_(True)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The layer's input as INT8 represents it; unchanged while the layer does not round.

        Args:
            x: Of any shape, the batch first.
        """
        if not self.enabled:
            return x
        out: Tensor = _FakeQuantize.apply(x, self.scale)  # type: ignore[no-untyped-call]
        return out

    def quantized_weight(self) -> Tensor:
        """The weights as INT8 represents them, unchanged while the layer does not round.

        The scale of an output channel is its largest magnitude over 127; gradients pass straight
        through.
        """
        w = self.weight
        if not self.enabled:
            return w
        with torch.no_grad():
            channel = tuple(range(1, w.ndim))
            scale = w.abs().amax(channel, keepdim=True).div_(_HIGH).clamp_min_(_EPS)
            error = (w / scale).round_().mul_(scale).sub_(w)
        return w + error


class Conv2d(FakeQuantLayer, nn.Conv2d):
    """A convolution; grouped ones never round."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantized_input(x), self.quantized_weight()
        if self.groups > 1 and self.stride != (1, 1) and _trains_in_bf16(x):
            # The derivatives of a strided depthwise convolution take ten times its unstrided
            # form's on a CPU, in bfloat16 (torch 2.13, AMD EPYC with AVX-512, 2026-11-25).
            unstrided: Tensor = nn.functional.conv2d(
                x, weight, self.bias, 1, self.padding, self.dilation, self.groups
            )
            return unstrided[:, :, :: self.stride[0], :: self.stride[1]]
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class Linear(FakeQuantLayer, nn.Linear):
    """A matrix product."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_parameter("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


def fake_quant_layers(network: nn.Module) -> Iterator[tuple[str, Conv2d | Linear]]:
    """The layers that can round: dense convolutions and matrix products.

    Args:
        network: Made of this module's layers.

    Yields:
        Name and layer, in the order in which they compute.
    """
    for name, module in network.named_modules():
        if isinstance(module, Linear) or (isinstance(module, Conv2d) and module.groups == 1):
            yield name, module


def add_scales(network: nn.Module) -> list[nn.Parameter]:
    """Give every layer that can round a scale for its input: 0, and not learned yet.

    Args:
        network: Its layers do not round until `start_fake_quant`.

    Returns:
        The scales, `()` each.
    """
    scales = []
    for _, layer in fake_quant_layers(network):
        zero = torch.zeros((), device=layer.weight.device)
        layer.scale = nn.Parameter(zero, requires_grad=False)
        scales.append(layer.scale)
    return scales


def start_fake_quant(network: nn.Module) -> None:
    """Round from now on, with the scales that the layers have, and learn those.

    Args:
        network: With scales, from `add_scales`.
    """
    for _, layer in fake_quant_layers(network):
        layer.enable()


@contextmanager
def init_scales(network: nn.Module, combine: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, each layer that runs takes its first scale from its input and then rounds.

    Args:
        network: With scales, from `add_scales`; it is put in train mode.
        combine: Makes one scale `()` of those of several ranks.
    """

    def init_scale(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, FakeQuantLayer)
        assert layer.scale is not None
        layer.scale.copy_(combine(best_scale(inputs[0])))
        layer.enable()

    hooks = [layer.register_forward_pre_hook(init_scale) for _, layer in fake_quant_layers(network)]
    network.train()  # as in the steps to come: running statistics lag behind, early on by far
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def best_scale(x: Tensor) -> Tensor:
    """The scale with the smallest squared rounding error, of 96 ranges up to the largest magnitude.

    Args:
        x: Of any shape; the error is taken on up to 65,536 of its values.

    Returns:
        `() float32`, positive.
    """
    x = x.detach().float()
    amax = x.abs().max().clamp_min(_EPS)
    flat = x.reshape(-1)
    flat = flat[:: 1 + len(flat) // _SAMPLE]
    scales = _CLIPPINGS.to(x.device) * amax / _HIGH
    errors = [((flat / s).round_().clamp_(_LOW, _HIGH) * s - flat).square().sum() for s in scales]
    return scales[torch.stack(errors).argmin()]


@contextmanager
def limit_scale_change(network: nn.Module) -> Iterator[None]:
    """Around an optimizer step: no scale changes by more than 5 %.

    A large gradient could carry one to 0 or below, and every output would become NaN.

    Args:
        network: With or without scales.
    """
    scales = [layer.scale for _, layer in fake_quant_layers(network) if layer.scale is not None]
    before = [scale.detach().clone() for scale in scales]
    yield
    with torch.no_grad():
        for scale, old in zip(scales, before, strict=True):
            scale.clamp_(old / _MAX_SCALE_CHANGE, old * _MAX_SCALE_CHANGE)


def split_scales(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Take the scales out of a state dict.

    Args:
        state: Of a network with or without scales.

    Returns:
        The state dict without scales, and layer -> amax, the largest magnitude that its input can
        represent (127 scales), in the order in which the layers compute.
    """
    plain = {name: value for name, value in state.items() if not name.endswith(".scale")}
    ranges = {
        name.removesuffix(".scale"): _HIGH * float(value)
        for name, value in state.items()
        if name.endswith(".scale")
    }
    return plain, ranges


def _trains_in_bf16(x: Tensor) -> bool:
    return not x.is_cuda and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
