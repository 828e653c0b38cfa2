"""INT8 of networks whose channels are joined, split and shuffled, with random weights.

    python benchmarks/random_networks.py [--networks shuffle,dense,light,ghost] [--people 60] [--seed 0]

No trained network of these kinds is at hand. Their layers' channels are unlike, as those of trained
networks are: BatchNormalization has exp(.7 z) as gamma, for normal z. They are calibrated on four
drawn faces of each person; on one person in five it is judged. Prints 1 - cosine, 1e4 times, mean /
worst, of all dense layers in INT8 without equalization and with it, and of what calibrate chooses.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.calibration_report import CalibrationReport
from fr_edge.calibration.fitting import CalibrationSteps
from fr_edge.calibration.search.error_limit import ERROR_LIMIT
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import open_faces
from fr_edge.metrics.rates import EmbeddingLoss

SPREAD = 0.7


def layer(
    inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs, momentum=None)
    with torch.no_grad():
        norm.weight.copy_(torch.exp(torch.randn(outputs) * SPREAD))
        norm.bias.copy_(0.3 * torch.randn(outputs) * norm.weight)
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm, nn.PReLU(outputs))


class ShuffleUnit(nn.Module):
    """ShuffleNet V2 (arXiv 1807.11164, figure 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half, self.halves = outputs // 2, inputs != outputs
        stride = 2 if self.halves else 1
        self.right = nn.Sequential(
            layer(inputs if self.halves else half, half),
            layer(half, half, 3, stride, half),
            layer(half, half),
        )
        if self.halves:
            self.left = nn.Sequential(layer(inputs, inputs, 3, 2, inputs), layer(inputs, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.halves else x.chunk(2, dim=1)
        x = torch.cat([self.left(left) if self.halves else left, self.right(right)], dim=1)
        count, channels, height, width = x.shape
        pairs = x.view(count, 2, channels // 2, height, width)
        return pairs.transpose(1, 2).reshape(count, channels, height, width)


class DenseBlock(nn.Module):
    """DenseNet (arXiv 1608.06993): each layer reads all before it."""

    def __init__(self, inputs: int, layers: int, growth: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(layer(inputs + i * growth, 48), layer(48, growth, 3))
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = torch.cat([x, one(x)], dim=1)
        return x


class GhostModule(nn.Module):
    """GhostNet (arXiv 1911.11907): half of the channels by a depthwise layer of the others."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.first = layer(inputs, half, 3 if stride > 1 else 1, stride)
        self.ghosts = layer(half, half, 3, 1, half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([x, self.ghosts(x)], dim=1)


class MaxFeatureMap(nn.Module):
    """LightCNN (arXiv 1511.02683): the larger of two halves of the channels, no activation."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        conv, norm, _ = layer(inputs, 2 * outputs, side)
        self.both = nn.Sequential(conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x).chunk(2, dim=1)
        return torch.max(first, second)


def body(name: str) -> tuple[nn.Module, int]:
    """From the image to 7 x 7 cells of so many channels."""
    if name == "shuffle":
        widths = [24, *[48] * 4, *[96] * 8, *[192] * 4]
        units = [ShuffleUnit(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        return nn.Sequential(layer(3, 24, 3, 2), *units), 192
    if name == "dense":
        parts, width = [layer(3, 32, 3, 2)], 32
        for _ in range(3):
            wide = width + 5 * 16
            parts += [DenseBlock(width, 5), layer(wide, wide // 2), nn.AvgPool2d(2)]
            width = wide // 2
        return nn.Sequential(*parts), width
    if name == "light":
        parts = [MaxFeatureMap(3, 24, 5)]
        for a, b in ((24, 48), (48, 96), (96, 96), (96, 64)):
            parts += [nn.MaxPool2d(2), MaxFeatureMap(a, a, 1), MaxFeatureMap(a, b, 3)]
        return nn.Sequential(*parts), 64
    modules = [GhostModule(a, b, 1 + (a != b)) for a, b in ((24, 48), (48, 48), (48, 96), (96, 96))]
    return nn.Sequential(layer(3, 24, 3, 2), *modules, GhostModule(96, 144, 2)), 144


def network(name: str, faces: np.ndarray) -> nn.Module:
    """With the statistics of faces in its BatchNormalizations."""
    inner, width = body(name)
    whole = nn.Sequential(inner, layer(width, width, 7, 7, width), nn.Flatten(), nn.LazyLinear(128))
    with torch.no_grad():
        whole.train()(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return whole.eval()


def trials_of(report: CalibrationReport) -> list[EmbeddingLoss]:
    """What was judged, that of all dense layers in INT8 first."""
    return sorted((trial.loss for trial in report.trials), key=lambda loss: loss.cosine.mean)


def lost(loss: EmbeddingLoss) -> str:
    """1 - cosine, 1e4 times: mean / worst."""
    return f"{1e4 * (1 - loss.cosine.mean):.1f} / {1e4 * (1 - loss.cosine.min):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="shuffle,dense,light,ghost")
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drawn = next(open_faces("synthetic:32x2@77").batches(64))
    faces = open_faces(f"synthetic:{args.people}x4@5")
    print("| network | dense layers | without equalization | with it | as calibrate chooses |")
    print("|---|---|---|---|---|")
    for name in args.networks.split(","):
        torch.manual_seed(args.seed)
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file, bundle = Path(folder) / "net.onnx", Path(folder) / "net.bundle"
            torch.onnx.export(
                network(name, drawn), (torch.zeros(1, 3, 112, 112),), str(file), dynamo=False,
                input_names=["face"], dynamic_axes={"face": {0: "n"}}, opset_version=17,
            )  # fmt: skip
            export_onnx(file, bundle, spec=PRESETS["adadistill"])
            plain = calibrate(bundle, faces, steps=CalibrationSteps(equalization=False)).report
            report = calibrate(bundle, faces).report
        layers = report.int8_layers + report.kept_float.get(ERROR_LIMIT, 0)
        cells = [name, str(layers), *(lost(trials_of(one)[0]) for one in (plain, report))]
        cells.append(f"{report.int8_layers}: {lost(report.judged)}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
