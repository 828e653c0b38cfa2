"""Networks: parameter counts as published, shapes, and PReLU against torch's own."""

import pytest
import torch
from torch import nn

from fr_edge.distill.fake_quant import Conv2d
from fr_edge.distill.networks import PReLU, build_network
from fr_edge.errors import UsageError


@pytest.mark.parametrize(
    ("name", "dim", "count"),
    [
        ("mobilefacenet", 512, 1_199_488),
        ("mobilefacenet", 128, 1_002_880),
        ("mbf", 512, 2_059_520),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, dim: int, count: int) -> None:
    assert sum(p.numel() for p in build_network(name, dim).parameters()) == count


@pytest.mark.parametrize(
    ("name", "millions"),
    [("iresnet18", 24.03), ("iresnet34", 34.14), ("iresnet50", 43.59), ("iresnet100", 65.16)],
)
def test_iresnets_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(name)
    # The last normalisation's scale is frozen at 1 there, and not counted apart here.
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    "name",
    ["mobilefacenet", "mobilefacenet-0.25", "mobilefacenet-0.5-relu", "mbf", "iresnet-tiny"],
)
def test_networks_embed_faces(name: str) -> None:
    network = build_network(name, 24).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, 112, 112)).shape == (2, 24)


def test_the_relu_variant_has_no_prelu() -> None:
    assert not any(isinstance(m, nn.PReLU) for m in build_network("mobilefacenet-relu").modules())


def test_an_unknown_network_is_refused_with_the_names() -> None:
    with pytest.raises(UsageError) as caught:
        build_network("resnet50")
    assert "iresnet50" in caught.value.hint


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 7, 9), (1, 1, 1, 1), (4, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prelu_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine, theirs = PReLU(shape[1]), nn.PReLU(shape[1])
    slopes = torch.randn(shape[1])
    for layer in (mine, theirs):
        layer.weight.data.copy_(slopes)
    x = torch.randn(shape)
    x.flatten()[0] = 0.0
    a, b = x.clone().to(dtype).requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(shape)
    (mine(a).float() * weight).sum().backward()
    (theirs(b) * weight).sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for got, expected in ((a.grad, b.grad), (mine.weight.grad, theirs.weight.grad)):
        assert got is not None
        assert expected is not None
        torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance * 3)


@pytest.mark.parametrize("side", [9, 14])
def test_a_strided_depthwise_layer_trains_the_same_in_bf16(side: int) -> None:
    torch.manual_seed(4)
    layer = Conv2d(16, 16, 3, 2, 1, groups=16, bias=False)
    x = torch.randn(3, 16, side, side, requires_grad=True)
    plain = nn.functional.conv2d(x, layer.weight, None, 2, 1, 1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.shape == plain.shape
    given = torch.randn(plain.shape)
    for weights in (x, layer.weight):
        (one,) = torch.autograd.grad(plain, weights, given, retain_graph=True)
        (other,) = torch.autograd.grad(out, weights, given.to(out.dtype), retain_graph=True)
        torch.testing.assert_close(other, one, rtol=0.05, atol=0.05 * float(one.abs().max()))
