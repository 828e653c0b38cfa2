"""Pixels in gives what preprocessed faces give, on every backend that is here."""

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import UsageError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.graph.uint8_input import crop_shape, with_uint8_input
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.fingerprint import read_fingerprint
from fr_edge.runtime.onnxruntime_session import CpuSession
from fr_edge.runtime.session import open_session

SPECS = (
    InputSpec(),
    InputSpec(channels="BGR", mean=(104.0, 117.0, 123.0), std=(58.0, 57.0, 56.0)),
    InputSpec(width=96, std=(128.0,) * 3),
    InputSpec(channels="GREY", std=(128.0,) * 3),
    InputSpec(height=128, width=120),
)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(0, 256, (5, 112, 112, 3)).astype(np.uint8)


def file_for(spec, folder):
    """A convolution over whole rows, which sees every pixel, channel and crop."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(6, spec.shape[0], spec.height, spec.width)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["face", "w"], ["y"], "conv"),
            helper.make_node("Flatten", ["y"], ["embedding"], "flat"),
        ],
        "g",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", *spec.shape))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", 6))],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(made, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("spec", SPECS)
def test_the_network_does_what_preprocess_does(tmp_path, pixels, spec):
    """Faces of 112 pixels are enlarged for a larger network, whose own size is taken as it is."""
    file = file_for(spec, tmp_path)
    plain = CpuSession(file, "fp32", spec)
    save(with_uint8_input(load(file), spec), tmp_path / "crop.onnx")
    crops = CpuSession(tmp_path / "crop.onnx", "fp32", spec)
    assert crops.input_kind == "crop"
    own = np.random.default_rng(6).integers(0, 256, (3, *crop_shape(spec))).astype(np.uint8)
    for faces in (pixels, own):
        expected, result = plain.embed(faces), crops.embed(faces)
        assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_contract_that_scales_is_refused(tmp_path):
    spec = InputSpec(height=96, width=96)
    with pytest.raises(UsageError, match="at least 112 pixels a side, this one has 96"):
        with_uint8_input(load(file_for(spec, tmp_path)), spec)


def test_nvidias_compiler_takes_pixels(mini):
    pytest.importorskip("tensorrt_rtx", reason="the compile check needs tensorrt-rtx")
    built = build_engine(mini, "int8", "tensorrt-rtx", input_kind="crop")
    assert built.engine == "engines/tensorrt-rtx-int8-crop.plan"
    assert built.layers["int8"] > 0
    bundle = open_bundle(mini)
    assert built.engine in bundle
    assert read_fingerprint(bundle, built.engine)["input_kind"] == "crop"


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS)
def test_a_gpu_takes_pixels(tmp_path, pixels, spec, gpu_backend):
    root = tmp_path / "pixels.bundle"
    with transaction(root, "export", {}) as draft:
        draft.spec, draft.embedding_dim = spec, 6
        draft.path("model.onnx", "model").write_bytes(file_for(spec, tmp_path).read_bytes())
    build_engine(root, "fp32", gpu_backend, input_kind="crop")
    bundle = open_bundle(root)
    expected = open_session(bundle, "fp32", artifact="graph").embed(pixels)
    session = open_session(bundle, "fp32", gpu_backend)
    assert session.uint8_input
    assert np.abs(session.embed(pixels) - expected).max() <= 1e-3 * np.abs(expected).max()
    with pytest.raises(UsageError, match="takes pixels"):
        session.embed_tensor(preprocess(pixels, bundle.spec))
