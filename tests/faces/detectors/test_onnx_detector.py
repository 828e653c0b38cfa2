"""What reaches a detector: pixels in its order and scale, whatever the shape and type of its input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.errors import ModelError
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.detectors.onnx_detector import load_detector, run_detector

SPEC = InputSpec(channels="BGR", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
CANVAS = np.random.default_rng(3).integers(0, 256, (96, 64, 3), np.uint8)
MEANT = ((CANVAS[..., ::-1].astype(np.float32) - [10, 20, 30]) / [2, 4, 8]).transpose(2, 0, 1)[None]


def echo(
    path: Path,
    shape: list[int | str],
    kind: int = TensorProto.FLOAT,
    first: tuple[str, float] | None = None,
    inputs: int = 1,
) -> Path:
    """A network that gives back what it was given, or that after one operation."""
    nodes, at, weights = [], "picture", []
    if first:
        operation, number = first
        weights = [numpy_helper.from_array(np.float32(number), "number")]
        nodes.append(helper.make_node("Identity", ["picture"], ["same"]))
        nodes.append(helper.make_node(operation, ["same", "number"], ["begun"]))
        at = "begun"
    nodes.append(helper.make_node("Cast", [at], ["seen"], to=TensorProto.FLOAT))
    names = ["picture", "other"][:inputs]
    nodes += [helper.make_node("Identity", [n], [f"{n}_too"]) for n in names[1:]]
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info(n, kind, shape) for n in names],
        [helper.make_tensor_value_info("seen", TensorProto.FLOAT, None)],
        weights,
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.mark.parametrize("shape", [[1, 3, 96, 64], ["n", 3, 96, 64], ["n", "c", 96, 64]])
def test_pixels_arrive_as_the_contract_says(shape: list[int | str], tmp_path: Path) -> None:
    network = load_detector(echo(tmp_path / "e.onnx", shape))
    assert network.size == (96, 64)
    assert not network.raw
    np.testing.assert_allclose(run_detector(network, CANVAS, SPEC)["seen"], MEANT, rtol=1e-6)


def test_channels_last(tmp_path: Path) -> None:
    network = load_detector(echo(tmp_path / "e.onnx", [1, 96, 64, 3]))
    assert network.size == (96, 64)
    pixels = run_detector(network, CANVAS, SPEC)["seen"]
    np.testing.assert_allclose(pixels, MEANT.transpose(0, 2, 3, 1), rtol=1e-6)


def test_half_precision(tmp_path: Path) -> None:
    network = load_detector(echo(tmp_path / "e.onnx", [1, 3, 96, 64], TensorProto.FLOAT16))
    np.testing.assert_allclose(run_detector(network, CANVAS, SPEC)["seen"], MEANT, rtol=1e-3)


def test_bytes_are_not_normalised(tmp_path: Path) -> None:
    network = load_detector(echo(tmp_path / "e.onnx", [1, 3, 96, 64], TensorProto.UINT8))
    assert network.raw
    pixels = run_detector(network, CANVAS, SPEC)["seen"]
    np.testing.assert_array_equal(pixels[0], CANVAS[..., ::-1].transpose(2, 0, 1))


def test_a_fixed_batch(tmp_path: Path) -> None:
    network = load_detector(echo(tmp_path / "e.onnx", [4, 3, 96, 64]))
    np.testing.assert_allclose(run_detector(network, CANVAS, SPEC)["seen"], MEANT, rtol=1e-6)


def test_free_and_toy_sizes_become_640(tmp_path: Path) -> None:
    for shape in (["n", 3, "h", "w"], [10, 3, 32, 32]):
        network = load_detector(echo(tmp_path / "e.onnx", shape))
        assert network.size == (640, 640)
        assert run_detector(network, np.zeros((640, 640, 3), np.uint8), SPEC)["seen"].shape[0] == 1


@pytest.mark.parametrize(
    ("first", "raw"),
    [
        (("Sub", 127.5), True),
        (("Div", 255.0), True),
        (("Mul", 1 / 128), True),
        (("Add", -104.0), True),
        (("Sub", 0.5), False),
        (("Mul", 2.0), False),
        (("Div", 0.25), False),
        (("Pow", 100.0), False),
    ],
)
def test_a_network_that_normalises_inside_is_seen(
    first: tuple[str, float], raw: bool, tmp_path: Path
) -> None:
    assert load_detector(echo(tmp_path / "e.onnx", [1, 3, 96, 64], first=first)).raw is raw


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: echo(p, [1, 1, 96, 64]), "takes 1 channels"),
        (lambda p: echo(p, [3, 96, 64]), r"takes picture \(3, 96, 64\)"),
        (lambda p: echo(p, [1, 3, 96, 64], TensorProto.INT64), "tensor.int64"),
        (lambda p: echo(p, [1, 3, 96, 64], inputs=2), "picture .* other .*expected one image"),
    ],
)
def test_no_detector(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        load_detector(make(tmp_path / "e.onnx"))
