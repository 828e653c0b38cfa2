"""Networks that other projects have published, under the names that their weights have.

EdgeFace (arXiv 2307.01838) is timm's EdgeNeXt, with its linear layers split into two of low rank. timm is
an optional extra. It imports torchvision, which must fit the installed torch.

Inception-ResNet-v1 is FaceNet's network (arXiv 1503.03832 with the blocks of arXiv 1602.07261, figures 10
to 15), for faces of 160x160 pixels; sizes and names of its weights are those of facenet-pytorch's
`InceptionResnetV1`, so its checkpoints load as they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import MachineError, install_hint

EDGEFACES = {  # names of the published checkpoints -> timm's network, share of the full rank
    "edgeface_base": ("edgenext_base", None),
    "edgeface_s_gamma_05": ("edgenext_small", 0.5),
    "edgeface_xs_gamma_06": ("edgenext_x_small", 0.6),
    "edgeface_xxs": ("edgenext_xx_small", None),
}

Convolution = tuple[int, int | tuple[int, int], int]  # channels out, kernel, stride


class LowRankLinear(nn.Module):
    """Two linear layers in the place of one; only the second has a bias.

    Args:
        layer: The layer that is replaced.
        ratio: Share of its full rank.
    """

    def __init__(self, layer: nn.Linear, ratio: float) -> None:
        super().__init__()
        rank = max(2, int(min(layer.in_features, layer.out_features) * ratio))
        self.linear1 = nn.Linear(layer.in_features, rank, bias=False)
        self.linear2 = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.linear1(x))
        return out


def build_edgeface(name: str, dim: int = 512) -> nn.Module:
    """An EdgeFace with random weights, under the names of the published checkpoints.

    Args:
        name: A key of `EDGEFACES`.
        dim: Embedding size.

    Returns:
        `(N, 3, 112, 112) -> (N, dim)`.

    Raises:
        MachineError: timm cannot be imported.
    """
    try:
        import timm
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        raise MachineError(
            f"{name} is timm's network, and timm cannot be imported: {error}",
            f"{install_hint('edgeface')}, with the torchvision of the same release and build as"
            f" torch {torch.__version__}; or export it elsewhere by torch.onnx.export",
        ) from error
    kind, ratio = EDGEFACES[name]
    network: nn.Module = timm.create_model(kind, pretrained=False, num_classes=dim)
    if ratio is not None:
        _split_linear_layers(network, ratio)
    return network


def edgeface_of(state: Mapping[str, object]) -> str | None:
    """Tell which EdgeFace weights belong to.

    Args:
        state: Name -> tensor.

    Returns:
        A key of `EDGEFACES`; None where they are of none.
    """
    stem = state.get("stem.0.weight")
    if not isinstance(stem, Tensor) or "stages.3.blocks.0.conv_dw.weight" not in state:
        return None
    split = any(name.endswith(".linear1.weight") for name in state)
    blocks = sum(name.startswith("stages.2.blocks.") and name.endswith(".gamma") for name in state)
    # EdgeNeXt's table 9: width of the stem, blocks of the third stage (arXiv 2206.10589).
    known = {
        (80, 9, False): "edgeface_base",
        (48, 9, True): "edgeface_s_gamma_05",
        (32, 9, True): "edgeface_xs_gamma_06",
        (24, 6, False): "edgeface_xxs",
    }
    return known.get((int(stem.shape[0]), blocks, split))


def _split_linear_layers(module: nn.Module, ratio: float) -> None:
    """Replace all linear layers but the head, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and "head" not in name:
            setattr(module, name, LowRankLinear(child, ratio))
        else:
            _split_linear_layers(child, ratio)


class _ConvNormRelu(nn.Module):
    """Convolution, BatchNorm with TensorFlow's epsilon, ReLU."""

    def __init__(
        self, inp: int, out: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = False
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inp, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def _branch(inp: int, *convolutions: Convolution) -> nn.Module:
    """Convolutions one after another; those with stride 2 are not padded."""
    parts = []
    for out, kernel, stride in convolutions:
        parts.append(_ConvNormRelu(inp, out, kernel, stride, same=stride == 1))
        inp = out
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


class _Branches(nn.Module):
    """Branches `branch0`, `branch1`, ... side by side, and a pooling where the size is halved."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.count = len(branches)
        for index, branch in enumerate(branches):
            self.add_module(f"branch{index}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{i}")(x) for i in range(self.count)], 1)


class _Residual(_Branches):
    """Branches, a 1x1 convolution back to the input's channels, scaled and added to the input."""

    def __init__(
        self, channels: int, inner: int, scale: float, relu: bool, *branches: nn.Module
    ) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(inner, channels, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2d(super().forward(x)) * self.scale + x
        return torch.relu(out) if self.relu else out


def _block35() -> nn.Module:
    one = _branch(256, (32, 1, 1))
    two = _branch(256, (32, 1, 1), (32, 3, 1))
    three = _branch(256, (32, 1, 1), (32, 3, 1), (32, 3, 1))
    return _Residual(256, 96, 0.17, True, one, two, three)


def _block17() -> nn.Module:
    one = _branch(896, (128, 1, 1))
    two = _branch(896, (128, 1, 1), (128, (1, 7), 1), (128, (7, 1), 1))
    return _Residual(896, 256, 0.1, True, one, two)


def _block8(scale: float = 0.2, relu: bool = True) -> nn.Module:
    one = _branch(1792, (192, 1, 1))
    two = _branch(1792, (192, 1, 1), (192, (1, 3), 1), (192, (3, 1), 1))
    return _Residual(1792, 384, scale, relu, one, two)


class InceptionResNet(nn.Module):
    """`(N, 3, 160, 160) -> (N, dim)`, of unit length.

    Args:
        dim: Embedding size; 512 in the published networks.
    """

    def __init__(self, dim: int = 512) -> None:
        super().__init__()
        self.conv2d_1a = _ConvNormRelu(3, 32, 3, 2)
        self.conv2d_2a = _ConvNormRelu(32, 32, 3)
        self.conv2d_2b = _ConvNormRelu(32, 64, 3, same=True)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = _ConvNormRelu(64, 80, 1)
        self.conv2d_4a = _ConvNormRelu(80, 192, 3)
        self.conv2d_4b = _ConvNormRelu(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*[_block35() for _ in range(5)])
        self.mixed_6a = _Branches(
            _branch(256, (384, 3, 2)),
            _branch(256, (192, 1, 1), (192, 3, 1), (256, 3, 2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*[_block17() for _ in range(10)])
        self.mixed_7a = _Branches(
            _branch(896, (256, 1, 1), (384, 3, 2)),
            _branch(896, (256, 1, 1), (256, 3, 2)),
            _branch(896, (256, 1, 1), (256, 3, 1), (256, 3, 2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*[_block8() for _ in range(5)])
        self.block8 = _block8(1.0, relu=False)
        self.last_linear = nn.Linear(1792, dim, bias=False)
        self.last_bn = nn.BatchNorm1d(dim, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_7a(self.repeat_2(self.mixed_6a(self.repeat_1(x))))
        x = self.block8(self.repeat_3(x))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return nn.functional.normalize(self.last_bn(self.last_linear(x)))
