"""Blocks of GhostNet, EdgeNeXt (EdgeFace) and Swin with random weights: what TensorRT-RTX makes of them.

    python tests/calibration/families.py

compiles each family and all of them in one network for SM 8.9, in INT8 with FP16 around it, and
prints the table of docs/results/engines.md; the one network is written to trained/families.onnx.xz,
which the tests read. Nothing runs: there is no GPU behind it. Needs torch and tensorrt-rtx.

The blocks are written after K. Han et al., GhostNet (2020); M. Maaz et al., EdgeNeXt (2022); Z. Liu
et al., Swin Transformer (2021).
"""

import lzma
from collections import Counter
from typing import Any

import onnx
import torch
from bench import Bench, BenchFaces, compiled
from make_trained import OUT, conv, exported
from torch import Tensor, nn
from torch.nn import functional as F

from fr_edge.graph.layers import weighted_layers
from fr_edge.runtime.trt.layers import reformats

WIDTH, SIDE, WINDOW = 32, 14, 7


class Ghost(nn.Module):
    """Half of the channels by a 1x1 convolution, half by a depthwise one from those."""

    def __init__(self, inp: int, out: int, active: bool) -> None:
        super().__init__()
        self.primary, self.cheap = conv(inp, out // 2, 1), conv(out // 2, out // 2, 3, 1, out // 2)
        self.active = nn.PReLU(out // 2) if active else nn.Identity()
        self.active_cheap = nn.PReLU(out // 2) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first = self.active(self.primary(x))
        return torch.cat([first, self.active_cheap(self.cheap(first))], 1)


class GhostBlock(nn.Module):
    """Two ghost modules with squeeze-excite by a hard sigmoid between them, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Ghost(WIDTH, 2 * WIDTH, True), Ghost(2 * WIDTH, WIDTH, False)
        self.squeeze, self.excite = nn.Conv2d(2 * WIDTH, 16, 1), nn.Conv2d(16, 2 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return x + self.after(y * F.hardsigmoid(gate))


class Mlp(nn.Module):
    """LayerNorm, linear, GELU, linear, LayerScale, on the last axis."""

    def __init__(self, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = (
            nn.Linear(WIDTH, expansion * WIDTH),
            nn.Linear(expansion * WIDTH, WIDTH),
        )
        self.scale = nn.Parameter(torch.ones(WIDTH) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.down(F.gelu(self.up(self.norm(x))))


class EdgeBlock(nn.Module):
    """A convolution encoder, then attention between channels behind split depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.encoder, self.mlp = Mlp(4), Mlp(4)
        half = WIDTH // 2
        self.split = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.norm, self.heads = nn.LayerNorm(WIDTH), 4
        self.qkv, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))

    def attention(self, x: Tensor) -> Tensor:
        n, tokens, c = x.shape
        parts = self.qkv(self.norm(x)).reshape(n, tokens, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 4, 1).unbind(0)  # (N, heads, channels, tokens)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.join((weights @ v).permute(0, 3, 1, 2).reshape(n, tokens, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.encoder(self.wide(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        first, second = x.split(WIDTH // 2, 1)
        x = torch.cat([first, self.split(first + second)], 1)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        tokens = tokens + self.mlp(tokens)
        return tokens.transpose(1, 2).reshape(-1, WIDTH, SIDE, SIDE)


class SwinBlock(nn.Module):
    """Attention within windows, shifted by half a window, with a bias by position."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.heads, self.norm = shift, 4, nn.LayerNorm(WIDTH)
        self.qkv, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(4, WINDOW**2, WINDOW**2) * 0.1)
        self.mlp = Mlp(4)

    def forward(self, x: Tensor) -> Tensor:
        count, heads, c = SIDE // WINDOW, self.heads, WIDTH
        x = x.permute(0, 2, 3, 1)
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.reshape(-1, count, WINDOW, count, WINDOW, c).transpose(2, 3)
        y = y.reshape(-1, WINDOW**2, c)
        parts = self.qkv(y).reshape(-1, WINDOW**2, 3, heads, c // heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // heads) ** -0.5 + self.bias).softmax(-1)
        y = self.join((weights @ v).transpose(1, 2).reshape(-1, WINDOW**2, c))
        y = y.reshape(-1, count, count, WINDOW, WINDOW, c).transpose(2, 3)
        y = y.reshape(-1, SIDE, SIDE, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.end = nn.Linear(WIDTH, 32, bias=False), nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.line(F.adaptive_avg_pool2d(x, 1).flatten(1)))


BLOCKS: dict[str, Any] = {
    "ghost": lambda: [GhostBlock(), GhostBlock()],
    "edge": lambda: [EdgeBlock()],
    "swin": lambda: [SwinBlock(0), SwinBlock(WINDOW // 2)],
}


def family_network(*names: str) -> onnx.ModelProto:
    """A stem, the blocks of the families and a head, as `fr-edge export` writes them."""
    torch.manual_seed(4)
    stem = nn.Sequential(conv(3, 16, 5, 4), nn.PReLU(16), conv(16, WIDTH, 3, 2))
    blocks = [block for name in names for block in BLOCKS[name]()]
    return exported(nn.Sequential(stem, *blocks, Head()).eval())


def main() -> None:
    """Print the table."""
    import tensorrt_rtx

    faces = BenchFaces()
    print("| network | layers with weights | in float | engine layers | reformats | lost |")
    print("|---|---|---|---|---|---|")
    for names in (("ghost",), ("edge",), ("swin",), tuple(BLOCKS)):
        model = family_network(*names)
        if len(names) > 1:
            (OUT / "families.onnx.xz").write_bytes(lzma.compress(model.SerializeToString()))
        bench = Bench(model, faces)
        precisions, rows = compiled(bench, tensorrt_rtx)
        counts = Counter(precisions.values())
        made = ", ".join(f"{count} {name.upper()}" for name, count in sorted(counts.items()))
        rest = [layer for layer in weighted_layers(bench.model) if layer.groups > 1]
        print(
            f"| {' + '.join(names)} | {made} | {len(rest)} depthwise | {len(rows)} |"
            f" {reformats(rows)} | {bench.loss():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
