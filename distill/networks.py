"""The networks: MobileFaceNet (students), IResNet (teachers), and those of checkpoints people bring.

All take `(N, 3, H, W) float32` and return `(N, D) float32` embeddings, not normalised unless their
file says so. MobileFaceNet (arXiv 1804.07573) has the shape that AdaDistill trains (1,199,488
parameters at width 1); IResNet is ArcFace's improved residual network (arXiv 1801.07698), of which
AdaFace (arXiv 2204.00964) and face.evoLVe (arXiv 2107.08621) have forms of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .fake_quant import Conv2d, Linear
from .published_networks import EDGEFACES, InceptionResNet, build_edgeface


class _PReLUFunction(torch.autograd.Function):
    """`x (N, C, ...)`, `slope (C,)` -> x where it is positive, slope * x elsewhere.

    torch's own backward pass is computed number by number on a CPU and was 29 to 47 % of a
    MobileFaceNet step there (torch 2.13, AMD EPYC with AVX-512, 2026-11-24); this one is made of
    vectorised operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, slope = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(grads[0], x, 0)
        negative = grads[0] - positive
        spatial = [1] * (x.ndim - 2)
        x_grad = positive.addcmul_(negative, slope.to(x.dtype).view(-1, *spatial))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        return x_grad, negative.mul_(x).sum(axes, dtype=torch.float32).to(slope.dtype)


class PReLU(nn.PReLU):
    """One slope per channel; the same parameters and values as torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or not torch.is_grad_enabled():
            # The ONNX exporter takes this path too.
            return super().forward(x)
        out: Tensor = _PReLUFunction.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out


def _conv_bn(
    inp: int, out: int, kernel: int, stride: int, padding: int, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(inp, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out)
    )


def _conv_block(
    inp: int, out: int, kernel: int, stride: int, padding: int, groups: int = 1, relu: bool = False
) -> nn.Sequential:
    act = nn.ReLU() if relu else PReLU(out)
    return nn.Sequential(*_conv_bn(inp, out, kernel, stride, padding, groups), act)


class Bottleneck(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project; the input is added when `residual`."""

    def __init__(
        self, inp: int, out: int, expand: int, stride: int, residual: bool, relu: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.body = nn.Sequential(
            _conv_block(inp, expand, 1, 1, 0, relu=relu),
            _conv_block(expand, expand, 3, stride, 1, groups=expand, relu=relu),
            _conv_bn(expand, out, 1, 1, 0),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if not self.residual:
            return y
        # The shortcut carries what the first layer reads, rounded or not.
        first: Conv2d = self.body[0][0]  # type: ignore[index]
        return first.quantized_input(x) + y


class MobileFaceNet(nn.Module):
    """`(N, 3, 112, 112) -> (N, dim)`, by arXiv 1804.07573.

    Args:
        dim: Embedding size.
        width: Factor of every channel count, which becomes a multiple of 8.
        outer: Factor of the channel counts between the bottlenecks; 2 in insightface's mbf, whose
            second layer keeps 64 groups.
        affine: Scale and shift after the last normalisation, as in insightface's mbf.
        relu: ReLU instead of PReLU, which costs INT8 accuracy and speed.
    """

    def __init__(
        self,
        dim: int = 512,
        width: float = 1.0,
        *,
        outer: int = 1,
        affine: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()

        def ch(channels: float) -> int:
            return max(8, int(channels * width / 8 + 0.5) * 8)

        def block(inp: int, out: int, expand: int, stride: int) -> nn.Module:
            shapes = ch(inp * outer), ch(out * outer), ch(expand)
            return Bottleneck(*shapes, stride, stride == 1, relu)

        stem = ch(64 * outer)
        self.features = nn.Sequential(
            _conv_block(3, stem, 3, 2, 1, relu=relu),
            _conv_block(stem, stem, 3, 1, 1, groups=ch(64), relu=relu),
            block(64, 64, 128, 2),
            *[block(64, 64, 128, 1) for _ in range(4)],
            block(64, 128, 256, 2),
            *[block(128, 128, 256, 1) for _ in range(6)],
            block(128, 128, 512, 2),
            *[block(128, 128, 256, 1) for _ in range(2)],
            _conv_block(ch(128 * outer), ch(512), 1, 1, 0, relu=relu),
        )
        self.pool = _conv_bn(ch(512), ch(512), 7, 1, 0, groups=ch(512))
        self.embed = Linear(ch(512), dim, bias=False)
        self.norm = nn.BatchNorm1d(dim, affine=affine)
        for module in self.modules():
            if isinstance(module, Conv2d | Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        out: Tensor = self.norm(self.embed(x))
        return out


class _ChannelGate(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): channels are scaled by what all pixels hold."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.excite = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        out: Tensor = x * torch.sigmoid(self.excite(gate))
        return out


class _IBlock(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, plus the (projected) input.

    `form` is "insightface", "adaface" (the shortcut of as many channels is never projected) or
    "evolve" (likewise, and no normalisation between the convolutions).
    """

    def __init__(self, inp: int, out: int, stride: int, form: str, gated: bool) -> None:
        super().__init__()
        inner = _conv_block(inp, out, 3, 1, 1)
        if form == "evolve":
            inner = nn.Sequential(inner[0], nn.Identity(), inner[2])
        parts = [nn.BatchNorm2d(inp), inner, _conv_bn(out, out, 3, stride, 1)]
        self.body = nn.Sequential(*parts, *([_ChannelGate(out)] if gated else []))
        self.shortcut: nn.Module = nn.Identity()
        if inp != out or (stride > 1 and form == "insightface"):
            self.shortcut = _conv_bn(inp, out, 1, stride, 0)
        elif stride > 1:
            self.shortcut = nn.MaxPool2d(1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class IResNet(nn.Module):
    """`(N, 3, 112, 112) -> (N, dim)`, by arXiv 1801.07698.

    Args:
        blocks: Number of blocks in each stage.
        dim: Embedding size.
        widths: Channels of each stage.
        stem_stride: 1 in the published networks; 2 makes the demo's small teacher.
        form: "insightface", "adaface" (no scale and shift after the last normalisation) or
            "evolve", which differ in their blocks.
        gated: Squeeze and excitation in each block.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        dim: int = 512,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        stem_stride: int = 1,
        *,
        form: str = "insightface",
        gated: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_block(3, widths[0], 3, stem_stride, 1)]
        inp = widths[0]
        for count, width in zip(blocks, widths, strict=True):
            for index in range(count):
                layers.append(_IBlock(inp, width, 2 if index == 0 else 1, form, gated))
                inp = width
        side = 112 // (16 * stem_stride) + (1 if stem_stride == 2 else 0)
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inp), nn.Flatten())
        self.embed = Linear(inp * side * side, dim)
        self.norm = nn.BatchNorm1d(dim, affine=form != "adaface")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.embed(self.features(x)))
        return out


BLOCKS = {  # depth of an IResNet -> blocks in each stage
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


def _residual(depth: int, form: str, gated: bool = False) -> Callable[[int], nn.Module]:
    return lambda dim: IResNet(BLOCKS[depth], dim, form=form, gated=gated)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "mobilefacenet": lambda dim: MobileFaceNet(dim),
    "mobilefacenet-0.5": lambda dim: MobileFaceNet(dim, 0.5),
    "mobilefacenet-0.25": lambda dim: MobileFaceNet(dim, 0.25),
    "mobilefacenet-relu": lambda dim: MobileFaceNet(dim, relu=True),
    "mobilefacenet-0.5-relu": lambda dim: MobileFaceNet(dim, 0.5, relu=True),
    "mobilefacenet-affine": lambda dim: MobileFaceNet(dim, affine=True),
    "mobilefacenet-0.5-affine": lambda dim: MobileFaceNet(dim, 0.5, affine=True),
    "mobilefacenet-0.25-affine": lambda dim: MobileFaceNet(dim, 0.25, affine=True),
    "mbf": lambda dim: MobileFaceNet(dim, outer=2, affine=True),
    "iresnet-tiny": lambda dim: IResNet((1, 1, 1, 1), dim, (16, 32, 64, 128), stem_stride=2),
    **{f"iresnet{depth}": _residual(depth, "insightface") for depth in BLOCKS},
    **{f"adaface-ir{depth}": _residual(depth, "adaface") for depth in (18, 34, 50, 100)},
    **{f"evolve-ir{depth}": _residual(depth, "evolve") for depth in (50, 100)},
    **{f"evolve-irse{depth}": _residual(depth, "evolve", gated=True) for depth in (50, 100)},
    "facenet": InceptionResNet,
    **{name: partial(build_edgeface, name) for name in EDGEFACES},
}


ALIASES = {  # names that people use -> ours
    **{f"r{depth}": f"iresnet{depth}" for depth in BLOCKS},
    **{f"ir_{depth}": f"adaface-ir{depth}" for depth in (18, 34, 50)},
    **dict.fromkeys(("ir_100", "ir_101"), "adaface-ir100"),
    **dict.fromkeys(("ir_se_50", "ir_se50", "irse50"), "evolve-irse50"),
    "ir50": "evolve-ir50",
    "mobileface": "mobilefacenet",
    "inception_resnet_v1": "facenet",
    "inceptionresnetv1": "facenet",
}


def build_network(name: str, dim: int = 512) -> nn.Module:
    """A network with random weights.

    Args:
        name: A key of `NETWORKS` or `ALIASES`.
        dim: Embedding size.

    Raises:
        UsageError: There is no network of that name.
        MachineError: It is an EdgeFace, and timm is not installed.
    """
    check_network(name)
    return NETWORKS[network_name(name)](dim)


def check_network(name: str) -> None:
    """Check that a network exists.

    Args:
        name: A key of `NETWORKS` or `ALIASES`.

    Raises:
        UsageError: There is no network of that name.
    """
    if network_name(name) not in NETWORKS:
        raise UsageError(
            f"there is no network {name!r}",
            f"networks: {', '.join(NETWORKS)}; your own: --arch FILE.py:FUNCTION",
        )


def network_name(name: str) -> str:
    """fr-edge's name of a network.

    Args:
        name: A name as people write it, in any case: `r50`, `IR_101`, `mbf`.

    Returns:
        A key of `NETWORKS` where it is one of theirs, else the name as it is.
    """
    if name in NETWORKS:
        return name
    lower = name.lower()
    return ALIASES.get(lower, lower if lower in NETWORKS else name)


def usual_preset(name: str) -> str:
    """The input contract that published weights of a network were trained with.

    Args:
        name: A key of `NETWORKS`.

    Returns:
        A key of `faces.contract.PRESETS`: AdaFace reads BGR (its README), facenet-pytorch faces of
        160 pixels.
    """
    return "facenet" if name == "facenet" else "adaface" if "adaface" in name else "insightface"
