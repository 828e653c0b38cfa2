"""A small network, exported, and synthetic faces."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from bench import BenchFaces  # noqa: E402
from networks import write_network  # noqa: E402

from fr_edge.bundle.manifest import Bundle  # noqa: E402
from fr_edge.calibration.collect import collect_histograms  # noqa: E402
from fr_edge.calibration.histogram import Histogram  # noqa: E402
from fr_edge.export.export import export_onnx  # noqa: E402
from fr_edge.faces.contract import PRESETS, preprocess  # noqa: E402
from fr_edge.faces.sources import Faces, open_faces  # noqa: E402
from fr_edge.graph.layers import choose_int8_layers  # noqa: E402

SPEC = PRESETS["insightface"]


@pytest.fixture(scope="session")
def faces() -> Faces:
    """20 synthetic people, 2 faces each."""
    return open_faces("synthetic:20x2@7").cached()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Shared by all tests, which do not change it."""
    folder = tmp_path_factory.mktemp("calibration")
    return export_onnx(write_network(folder / "n.onnx"), folder / "n.bundle", spec=SPEC).bundle


@pytest.fixture(scope="session")
def model(exported: Bundle) -> onnx.ModelProto:
    """Float, normalised; channels of very different loudness, as trained networks have them."""
    network = onnx.load(exported.file("model.onnx"))
    rng = np.random.default_rng(3)
    for node in network.graph.node:
        if node.op_type != "Conv":
            continue
        for tensor in network.graph.initializer:
            if tensor.name in node.input[1:]:
                array = onnx.numpy_helper.to_array(tensor)
                loud = np.exp(rng.normal(0, 1, len(array))).reshape(-1, *[1] * (array.ndim - 1))
                array = (array * loud).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return network


@pytest.fixture(scope="session")
def inputs(faces: Faces) -> np.ndarray:
    """`(40, 3, 112, 112) float32`."""
    return preprocess(next(faces.batches(len(faces))), SPEC)


@pytest.fixture(scope="session")
def histograms(model: onnx.ModelProto, faces: Faces) -> dict[str, Histogram]:
    images = map(faces.read, range(len(faces)))
    return collect_histograms(model, choose_int8_layers(model).tensors, SPEC, images)


@pytest.fixture(scope="session")
def bench_faces() -> BenchFaces:
    """Drawn faces that calibrate, and others that judge."""
    return BenchFaces()
