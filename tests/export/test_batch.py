"""A graph exported for a fixed number of faces takes any number, and gives each the same embedding."""

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fr_edge.errors import ModelError

DIM = 24


class Patches(nn.Module):
    """`(N, 3, 112, 112)` -> `(N, 16, 16, DIM)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, DIM, 7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).permute(0, 2, 3, 1)


class Attention(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        count, length, width = x.shape
        parts = self.qkv(x).reshape(count, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores + mask.repeat(count // len(mask), 1, 1).unsqueeze(1)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, width)


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.head = Patches(), Attention(), nn.Linear(DIM, 16)
        self.token = nn.Parameter(torch.randn(1, 1, DIM))
        self.place = nn.Parameter(torch.randn(1, 257, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.attention(x)[:, 0])


class Windows(nn.Module):
    """Attention within 16 windows of 4x4, each with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.head = Patches(), Attention(), nn.Linear(DIM, 16)
        self.mask = nn.Parameter(torch.randn(16, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        count = len(x)
        y = x.view(count, 4, 4, 4, 4, DIM).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, DIM)
        y = self.attention(y, self.mask)
        y = y.view(count, 4, 4, 4, 4, DIM).permute(0, 1, 3, 2, 4, 5).reshape(count, 16, 16, DIM)
        return self.head((x + y).mean((1, 2)))


class TwoViews(nn.Module):
    """The embedding averaged over a face and its mirror image, in one run of twice the batch."""

    def __init__(self, split: str) -> None:
        super().__init__()
        self.split, self.patches, self.head = split, Patches(), nn.Linear(DIM, 16)

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        both = self.head(self.patches(torch.cat([x, x.flip(3)], 0)).relu().mean((1, 2)))
        if self.split == "slice":
            return functional.normalize(both[:count] + both[count:])
        first, second = torch.split(both, count)
        return functional.normalize(first + second)


class TokensFirst(nn.Module):
    """`(tokens, N, width)`, as torch.nn.MultiheadAttention computes: the batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(), nn.Linear(DIM, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(1, 2).transpose(0, 1)
        length, count, _ = x.shape
        q = x.reshape(length, count * 2, DIM // 2).transpose(0, 1)
        y = (q @ q.transpose(1, 2)).softmax(-1) @ q
        y = y.transpose(0, 1).reshape(length, count, DIM)
        return self.head((x + y).mean(0))


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(), nn.Linear(DIM, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, size=(168, 168), mode="bilinear", align_corners=False)
        return self.head(self.patches(x).relu().mean((1, 2)))


NETWORKS = {
    "class token": ClassToken,
    "windows": Windows,
    "two views, sliced": lambda: TwoViews("slice"),
    "two views, split": lambda: TwoViews("split"),
    "tokens first": TokensFirst,
    "resized": Resized,
}


def exported(network: nn.Module, batch: int, opset: int = 17) -> onnx.ModelProto:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's about Python numbers, the exporter's own
        torch.onnx.export(
            network.eval(), (torch.zeros(batch, 3, 112, 112),), stream, dynamo=False,
            opset_version=opset, input_names=["data"], output_names=["out"],
        )  # fmt: skip
    return onnx.load_model_from_string(stream.getvalue())


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fixed_batch_is_freed(name: str, batch: int, tools: SimpleNamespace) -> None:
    torch.manual_seed(3)
    network = NETWORKS[name]()
    given = exported(network, batch)
    model = tools.standard(given)
    faces = tools.noise(17, 3, 112, 112)
    with torch.no_grad():
        expected = network(torch.from_numpy(faces)).numpy()
    for count in (1, 7, 17):
        result = tools.run(model, faces[:count])
        assert result.shape == (count, 16)
        assert tools.cosine(result, expected[:count]) > 0.999999


def test_faces_that_depend_on_each_other_are_refused(tools: SimpleNamespace) -> None:
    """A batch of 4 of which the graph gives each face another constant, or takes some apart."""

    class Differently(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = Patches(), nn.Linear(DIM, 16)
            self.shift = nn.Parameter(torch.randn(4, DIM))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.patches(x).mean((1, 2)) + self.shift)

    class Apart(Differently):
        def forward(self, x: Tensor) -> Tensor:
            x = self.head(self.patches(x).mean((1, 2)))
            return torch.cat([x[:1] * 2, x[1:]])

    for network, message in ((Differently(), "differently"), (Apart(), "apart")):
        with pytest.raises(ModelError, match=message):
            tools.standard(exported(network, 4))


def test_export_takes_a_fixed_batch(tmp_path: Path) -> None:
    from fr_edge.export.export import export_onnx
    from fr_edge.faces.contract import PRESETS

    torch.manual_seed(3)
    path = tmp_path / "vit.onnx"
    onnx.save(exported(ClassToken(), 1, opset=14), path)
    result = export_onnx(path, tmp_path / "b", spec=PRESETS["insightface"])
    assert result.summary.check.min_cosine > 0.99999
    shape = onnx.load(result.bundle.file("model.onnx")).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "batch"
    assert np.isfinite(result.summary.check.max_abs_difference)
