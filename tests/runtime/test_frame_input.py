"""Alignment inside the engine gives what norm_crop gives, on every backend that is here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.golden import read_golden
from fr_edge.errors import BundleError, FacesError, ModelError, UsageError
from fr_edge.faces.align import align
from fr_edge.faces.contract import ARCFACE_TEMPLATE, InputSpec, preprocess, resize_face
from fr_edge.faces.sources import open_faces
from fr_edge.faces.synthetic.render import draw_face
from fr_edge.graph.frame_input import with_frame_input
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.fingerprint import read_fingerprint
from fr_edge.runtime.frames import draw_frame, needed_part, tile_faces
from fr_edge.runtime.session import open_session

RAW = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, l2_normalised=True)
TEMPLATE = np.array(ARCFACE_TEMPLATE)


def flat_network(spec: InputSpec, opset: int = 17) -> onnx.ModelProto:
    """A network that gives its input back."""
    size = int(np.prod(spec.shape))
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["face"], ["embedding"])],
        "g",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", *spec.shape))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", size))],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"frame": frame[None], "landmarks": landmarks.astype(np.float32)}
    return np.asarray(session.run(None, feeds)[0])


def moved(scale: float, turn: float, to: tuple[float, float]) -> np.ndarray:
    """The template's landmarks, turned by radians and with its middle at x, y."""
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (TEMPLATE - 56) @ matrix.T + to


POSES = np.array(
    [
        moved(1.0, 0.0, (200, 150)),
        moved(0.6, 0.4, (300, 200)),
        moved(3.1, -0.7, (260, 210)),
        moved(1.7, np.pi, (300, 250)),  # upside down
        moved(1.2, 0.1, (20, 30)),  # reaches over the border
    ]
)


@pytest.mark.parametrize("opset", [16, 17, 20, 21])
def test_a_crop_is_norm_crops_to_one_grey_level(opset: int) -> None:
    random = np.random.default_rng(3)
    small = random.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    frame = np.kron(small, np.ones((12, 12, 1), np.uint8))  # edges: a wrong pixel shows
    landmarks = POSES + random.normal(0, 1, POSES.shape)
    crops = run(with_frame_input(flat_network(RAW, opset), RAW), frame, landmarks)
    crops = crops.reshape(-1, 3, 112, 112).transpose(0, 2, 3, 1)
    expected = np.stack([align(frame, points) for points in landmarks.astype(np.float32)])
    assert (crops == crops.round()).all()
    difference = np.abs(crops - expected)
    assert (difference > 0).mean() < 0.005
    assert difference.max() <= 9  # 1/32 of a pixel across the hardest edge


def test_all_landmarks_alike_or_not_finite_give_no_embedding() -> None:
    frame = np.zeros((50, 60, 3), np.uint8)
    bad = np.stack([np.full((5, 2), 9.0), np.full((5, 2), np.nan), moved(0.3, 0, (30, 25))])
    crops = run(with_frame_input(flat_network(RAW), RAW), frame, bad)
    assert np.isnan(crops[:2]).all()
    assert (crops[2] == 0).all()


def test_a_larger_network_is_fed_from_the_frame() -> None:
    spec = replace(RAW, height=224, width=224)
    ramp = np.arange(200, dtype=np.uint8)[None, :, None]
    frame = np.broadcast_to(ramp, (180, 200, 3))
    crop = run(with_frame_input(flat_network(spec), spec), frame, moved(1, 0, (100, 90))[None])
    row = crop.reshape(3, 224, 224)[0, 100]
    # norm_crop doubles the template: pixel i of 224 lies at i / 2 of the 112, which begin at 100 - 56.
    assert np.abs(row - (np.arange(224) / 2 + 44)).max() <= 0.5 + 1 / 64


@pytest.mark.parametrize("side", [128, 160])
def test_a_larger_network_gets_norm_crop_at_its_size(side: int) -> None:
    spec = replace(RAW, height=side, width=side)
    network = with_frame_input(flat_network(spec), spec)
    frame = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    points = POSES[0].astype(np.float32)
    part, there = needed_part(frame, points[None], side)
    for pixels, landmarks in ((frame, points[None]), (part, there)):
        crop = run(network, pixels, landmarks).reshape(3, side, side).transpose(1, 2, 0)
        assert (np.abs(crop - align(frame, points, size=side)) > 9).mean() < 1e-3
    for stored in (side, 112):  # aligned faces: as they are, or enlarged as on the host
        faces = np.stack([draw_face(identity, 0) for identity in range(2)])
        faces = np.stack([resize_face(face, stored) for face in faces])
        crops = run(network, *tile_faces(faces, side)).reshape(-1, *spec.shape)
        assert np.array_equal(crops, preprocess(faces, spec))


def test_the_contract_is_applied_and_the_output_has_unit_length() -> None:
    random = np.random.default_rng(1)
    for spec in (
        InputSpec(channels="BGR", mean=(104.0, 117.0, 123.0), std=(58.0, 57.0, 56.0)),
        InputSpec(width=96, std=(128.0,) * 3),
        InputSpec(channels="GREY", std=(128.0,) * 3),
    ):
        face = open_faces("synthetic:1x1@2")
        frame, landmarks = draw_frame(next(face.batches(1))[0], random)
        result = run(with_frame_input(flat_network(spec), spec), frame, landmarks)
        expected = preprocess(align(frame, landmarks[0])[None], spec).reshape(1, -1)
        expected /= np.linalg.norm(expected)
        assert np.linalg.norm(result) == pytest.approx(1, abs=1e-4)
        assert (result * expected).sum() > 0.99999


def test_what_cannot_be_aligned_in_an_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="112 pixels a side and more, this one has 96"):
        with_frame_input(
            flat_network(replace(RAW, height=96, width=96)), replace(RAW, height=96, width=96)
        )
    with pytest.raises(ModelError, match="needs opset 16, the model has 13"):
        with_frame_input(flat_network(RAW, 13), RAW)


def test_faces_side_by_side_are_cut_out_as_they_are() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (33, 112, 112, 3)).astype(np.uint8)
    crops = run(with_frame_input(flat_network(RAW), RAW), *tile_faces(faces))
    assert (crops.reshape(-1, 3, 112, 112).transpose(0, 2, 3, 1) == faces).all()


def test_the_needed_part_of_a_frame_gives_the_same_crops() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (500, 700, 3)).astype(np.uint8)
    for points in POSES.astype(np.float32):
        part, there = needed_part(frame, points[None])
        assert part.size < frame.size
        assert np.abs(align(part, there[0]).astype(int) - align(frame, points)).max() <= 9


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_three_inputs_give_the_same_embeddings(mini: Path, precision: str) -> None:
    faces = read_golden(open_bundle(mini)).faces[:6]
    random = np.random.default_rng(4)
    frame, landmarks = draw_frame(faces[0], random)
    embeddings, framed, layers = {}, {}, set()
    for kind in ("tensor", "crop", "frame"):
        built = build_engine(mini, precision, "onnxruntime", input_kind=kind)
        layers.add((tuple(built.layers.items()), built.integer_kernels))
        with open_session(mini, f"{precision}-{kind}", "onnxruntime") as session:
            assert session.input_kind == kind
            assert read_fingerprint(open_bundle(mini), session.file)["input_kind"] == kind
            embeddings[kind] = session.embed(faces)
            framed[kind] = session.embed_frame(frame, landmarks)
            assert session.embed(faces[:0]).shape == session.embed_frame(frame, landmarks[:0]).shape
            assert session.layer_times(faces[:2], 1)
            if kind != "tensor":
                with pytest.raises(UsageError, match="takes pixels"):
                    session.embed_tensor(preprocess(faces, open_bundle(mini).spec))
    assert len(layers) == 1 or precision == "int8"  # INT8 kernels are chosen by time
    unit = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in embeddings.items()}
    for kind in ("crop", "frame"):
        assert (unit[kind] * unit["tensor"]).sum(1).min() > 0.9999
        assert (framed[kind] * framed["tensor"]).sum(1).min() > 0.999
    assert np.abs(np.linalg.norm(embeddings["frame"], axis=1) - 1).max() < 1e-5
    assert np.abs(np.linalg.norm(framed["tensor"], axis=1) - 1).max() < 1e-5


def test_an_engine_is_named_by_what_it_takes(mini: Path) -> None:
    build_engine(mini, "fp32", "onnxruntime", input_kind="frame")
    with open_session(mini, "fp32", "onnxruntime") as session:  # the only one that was built
        assert session.file == "engines/onnxruntime-fp32-frame.onnx"
    with pytest.raises(BundleError, match="no fp32-crop engine") as caught:
        open_session(mini, "fp32-crop", "onnxruntime")
    assert "--fp32 --backend onnxruntime --input crop" in caught.value.hint
    with pytest.raises(UsageError, match="no engine 'fp32-film'"):
        open_session(mini, "fp32-film")
    with pytest.raises(UsageError, match="not a graph"):
        open_session(mini, "fp32-frame", artifact="graph")


IMPOSSIBLE = {
    "in one place": lambda p: np.full_like(p, 40),
    "not finite": lambda p: np.full_like(p, np.nan),
    "outside the frame of 640x480": lambda p: p + 5000,
    "not those of a face": lambda p: p * [[[-1, 1]]] + [[[640, 0]]],  # mirrored
    "not those of a face: they": lambda p: p[:, [1, 0, 2, 4, 3]],  # left and right confused
}


@pytest.mark.parametrize("kind", ["tensor", "frame"])
def test_impossible_landmarks_are_refused(mini: Path, kind: str) -> None:
    build_engine(mini, "fp32", "onnxruntime", input_kind=kind)  # type: ignore[arg-type]
    frame = np.zeros((480, 640, 3), np.uint8)
    landmarks = moved(2, 0, (320, 240))[None]
    with open_session(mini, f"fp32-{kind}", "onnxruntime") as session:
        for message, change in IMPOSSIBLE.items():
            with pytest.raises(FacesError, match=message):
                session.embed_frame(frame, change(landmarks).astype(np.float32))
        with pytest.raises(UsageError, match="expected landmarks"):
            session.embed_frame(frame, landmarks)  # float64
        with pytest.raises(UsageError, match="expected a frame"):
            session.embed_frame(frame[..., 0], landmarks.astype(np.float32))


def test_verify_compares_alignment_with_the_hosts(mini: Path) -> None:
    build_engine(mini, "fp32", "onnxruntime", input_kind="frame")
    result = verify(mini, "fp32-frame", backend="onnxruntime")
    assert result.passed
    assert result.golden.alignment_min_cosine is not None
    assert result.golden.alignment_min_cosine > 0.999
    assert result.artifact is not None
    assert result.artifact.file.endswith("-fp32-frame.onnx")
    # An engine that samples half a pixel beside the place.
    bundle = open_bundle(mini)
    path = bundle.file(result.artifact.file)
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name.startswith("frame_half"):
            initializer.CopyFrom(
                numpy_helper.from_array(np.array([512.5], np.float32), initializer.name)
            )
    tampered = mini.parent / "tampered.onnx"
    onnx.save(model, tampered)
    from fr_edge.runtime.evaluation.reference import check_reference
    from fr_edge.runtime.onnxruntime_session import CpuSession

    with (
        CpuSession(tampered, "fp32", bundle.spec, artifact="engine") as engine,
        open_session(bundle, "fp32", artifact="graph") as reference,
    ):
        golden = check_reference(read_golden(bundle), reference, engine)
    assert golden.alignment_min_cosine is not None
    assert golden.alignment_min_cosine < 0.999


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nvidias_compiler_takes_frames(mini: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the compile check needs tensorrt-rtx")
    plain = build_engine(mini, precision, "tensorrt-rtx")
    built = build_engine(mini, precision, "tensorrt-rtx", input_kind="frame")
    assert built.engine == f"engines/tensorrt-rtx-{precision}-frame.plan"
    assert built.layers == plain.layers
