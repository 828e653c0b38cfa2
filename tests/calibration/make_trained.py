"""Train the small networks of `trained/` on drawn faces; their files are shipped.

    python tests/calibration/make_trained.py [NAME...] [--faces SRC] [--out DIR]

`residual` has dense convolutions and PReLU, `excite` depthwise ones, SiLU and squeeze-excite,
`tokens` attention, LayerNorm and GELU. Each learns to tell 80 drawn people apart, in a minute or two
on a core, goes through `fr-edge export` and is written with weights of 16 bits, compressed:
NAME.onnx.xz. Needs torch. The seed is fixed; another version of torch trains slightly other weights.
"""

import argparse
import lzma
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import open_faces

OUT = Path(__file__).with_name("trained")
DIM = 64
EPOCHS = {"residual": 12, "excite": 12, "tokens": 40}


def conv(inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel // 2
    layer = nn.Conv2d(inp, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out))


class Head(nn.Module):
    """A global depthwise convolution and a linear layer."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.pool = nn.Conv2d(width, width, size, groups=width, bias=False)
        self.norm, self.line = nn.BatchNorm2d(width), nn.Linear(width, DIM, bias=False)
        self.end = nn.BatchNorm1d(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(x))
        return self.end(self.line(x.flatten(1)))


class Bottleneck(nn.Module):
    """1x1, PReLU, 3x3, PReLU, 1x1, and the input added."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, inner, 1), nn.PReLU(inner), conv(inner, inner, 3), nn.PReLU(inner),
            conv(inner, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Residual(nn.Module):
    """Dense convolutions, PReLU and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 16, 5, 4), nn.PReLU(16), conv(16, 32, 3, 2), nn.PReLU(32), Bottleneck(32, 24),
            Bottleneck(32, 24), conv(32, 64, 1), nn.PReLU(64), Head(64, 14),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Excited(nn.Module):
    """1x1, depthwise 3x3, squeeze-excite, 1x1, with SiLU."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inp
        self.before = nn.Sequential(
            conv(inp, wide, 1), nn.SiLU(), conv(wide, wide, 3, stride, wide), nn.SiLU()
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.after, self.skip = conv(wide, out, 1), stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        gate = F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        y = self.after(y * torch.sigmoid(self.excite(gate)))
        return x + y if self.skip else y


class Excite(nn.Module):
    """Inverted bottlenecks with SiLU and squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 16, 5, 4), nn.SiLU(), Excited(16, 24, 2), Excited(24, 24, 1),
            Excited(24, 32, 2), Excited(32, 32, 1), conv(32, 96, 1), nn.SiLU(), Head(96, 7),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Block(nn.Module):
    """Attention and two linear layers, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = self.qkv(self.norms[0](x)).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.join((weights @ v).transpose(1, 2).reshape(n, t, c))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Tokens(nn.Module):
    """49 tokens of 48 channels, two blocks, their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 5, 4), nn.GELU(), nn.Conv2d(16, 48, 4, 4))
        self.place = nn.Parameter(torch.randn(1, 49, 48) * 0.02)
        self.blocks = nn.Sequential(Block(48, 4), Block(48, 4), nn.LayerNorm(48))
        self.line = nn.Linear(48, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        return self.line(self.blocks(x).mean(1))


NETWORKS = {"residual": Residual, "excite": Excite, "tokens": Tokens}


def train(name: str, source: str, epochs: int) -> nn.Module:
    """A network that tells the people of a source apart, by their cosines to learned centres."""
    torch.manual_seed(1)
    faces = open_faces(source)
    images = torch.from_numpy(np.concatenate(list(faces.batches(64)))).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.unique(faces.labels, return_inverse=True)[1])
    network = NETWORKS[name]()
    centres = nn.Parameter(torch.randn(int(labels.max()) + 1, DIM) * 0.1)
    steps = len(images) // 32
    optimizer = torch.optim.AdamW([*network.parameters(), centres], weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images))[: steps * 32].split(32):
            x = images[batch].float().sub(127.5).div(127.5)
            x = torch.roll(x, torch.randint(-2, 3, (2,)).tolist(), (2, 3))
            cosines = F.normalize(network(x)) @ F.normalize(centres).T
            loss = F.cross_entropy(16 * cosines, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += loss.item()
        print(name, epoch, round(total / steps, 3), flush=True)
    return network.eval()


def exported(network: nn.Module) -> onnx.ModelProto:
    """What `fr-edge export` makes of it, its weights rounded to 16 bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (torch.zeros(1, 3, 112, 112),), path, dynamo=False, opset_version=17,
            input_names=["face"], dynamic_axes={"face": {0: "batch"}},
        )  # fmt: skip
        done = export_onnx(path, Path(folder) / "b.bundle", spec=PRESETS["insightface"])
        model = onnx.load(done.bundle.file("model.onnx"))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            short = array.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(short, tensor.name))
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--faces", default="synthetic:80x8@11")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    for name in asked.names:
        model = exported(train(name, asked.faces, EPOCHS[name]))
        data = lzma.compress(model.SerializeToString(), preset=9)
        (asked.out / f"{name}.onnx.xz").write_bytes(data)
        print(name, len(data), "bytes", flush=True)


if __name__ == "__main__":
    main()
