"""A network that normalizes itself, and faces that contradict a contract, are noticed at export."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.errors import ModelError
from fr_edge.export.canonicalize import tidy
from fr_edge.export.contract_check import check_contract, own_normalization
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS, InputSpec, make_spec
from fr_edge.faces.sources import Faces, open_faces

Step = tuple[str, list[object]]

RAW, NORMALIZED, IMAGENET = PRESETS["raw"], PRESETS["insightface"], PRESETS["imagenet"]
UNIT = InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3)


def channels(*values: float) -> np.ndarray:
    return np.float32(values).reshape(3, 1, 1)


def norm(mean: list[float], deviation: list[float]) -> list[object]:
    return [np.ones(3), np.zeros(3), np.float32(mean), np.float32(deviation) ** 2]


def begins_with(*steps: Step, last_reader: bool = True) -> ModelProto:
    """A Conv behind the steps; a constant named "x" stands for what the step before gives."""
    nodes, weights, tensor = [], [numpy_helper.from_array(np.ones((4, 3, 3, 3), "f"), "w")], "face"
    for number, (op, operands) in enumerate(steps):
        names = []
        for place, value in enumerate(operands):
            if isinstance(value, str):
                names.append(tensor)
                continue
            names.append(f"c{number}_{place}")
            weights.append(numpy_helper.from_array(np.float32(value), names[-1]))
        names = names if tensor in names or not operands else [tensor, *names]
        attributes = {"to": 1} if op == "Cast" else {}
        nodes.append(helper.make_node(op, names or [tensor], [f"t{number}"], **attributes))
        tensor = f"t{number}"
    nodes.append(helper.make_node("Conv", [tensor, "w"], ["out"], pads=[1] * 4))
    if not last_reader:
        nodes.append(helper.make_node("Concat", ["face", "out"], ["both"], axis=1))
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ("N", 3, 112, 112))
    end = helper.make_tensor_value_info("out" if last_reader else "both", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(nodes, "g", [face], [end], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


FOR_PIXELS: dict[str, list[Step]] = {
    "Sub, Mul": [("Sub", [127.5]), ("Mul", [0.0078125])],
    "Sub, Div": [("Sub", [127.5]), ("Div", [128.0])],
    "Div, Sub, Div": [("Div", [255.0]), ("Sub", [0.5]), ("Div", [0.5])],
    "Mul, Add": [("Mul", [2 / 255]), ("Add", [-1.0])],
    "constant first": [("Sub", ["x", 127.5]), ("Mul", [0.0078125, "x"])],
    "negative": [("Sub", [127.5, "x"]), ("Div", [-128.0])],
    "scale alone": [("Div", [255.0])],
    "ImageNet": [
        ("Div", [255.0]),
        ("Sub", [channels(0.485, 0.456, 0.406)]),
        ("Div", [channels(0.229, 0.224, 0.225)]),
    ],
    "BatchNormalization": [("BatchNormalization", norm([120, 100, 90], [60, 58, 61]))],
    "behind Cast and Identity": [
        *(("Cast", []), ("Identity", [])),
        *(("Sub", [127.5]), ("Identity", []), ("Mul", [0.0078125])),
    ],
}

FOR_UNIT: dict[str, list[Step]] = {
    "Sub, Div": [("Sub", [0.5]), ("Div", [0.5])],
    "ImageNet": [
        ("Sub", [channels(0.485, 0.456, 0.406)]),
        ("Div", [channels(0.229, 0.224, 0.225)]),
    ],
    "BatchNormalization": [("BatchNormalization", norm([0.5, 0.42, 0.38], [0.25, 0.23, 0.24]))],
}

FOR_NEITHER: dict[str, list[Step]] = {
    "nothing": [],
    "a learned norm of normalized pixels": [
        ("BatchNormalization", norm([-0.05, -0.2, -0.3], [0.5, 0.48, 0.5]))
    ],
    "back to pixels, and again": [
        *(("Mul", [127.5]), ("Add", [127.5])),
        *(("Sub", [127.5]), ("Mul", [0.0078125])),
    ],
    "a gain": [("Mul", [channels(1.1, 0.9, 1.0)])],
}


def check(model: ModelProto, spec: InputSpec, **options: object) -> object:
    return check_contract(tidy(model), lambda inputs: inputs, spec, **options).right  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", FOR_PIXELS.values(), ids=FOR_PIXELS)
def test_a_network_for_pixels_takes_raw_alone(steps: list[Step]) -> None:
    model = begins_with(*steps)
    assert check(model, RAW) is True
    for spec in (NORMALIZED, IMAGENET, UNIT, make_spec("facenet", size="112")):
        with pytest.raises(ModelError, match="normalizes pixels 0..255 itself") as raised:
            check(model, spec)
        assert "--preset raw" in raised.value.hint
        assert raised.value.exit_code == 4


@pytest.mark.parametrize("steps", FOR_UNIT.values(), ids=FOR_UNIT)
def test_a_network_for_pixels_up_to_one_takes_them_alone(steps: list[Step]) -> None:
    model = begins_with(*steps)
    assert check(model, UNIT) is True
    for spec in (NORMALIZED, IMAGENET, RAW):
        with pytest.raises(ModelError, match=r"normalizes pixels 0\.\.1 itself") as raised:
            check(model, spec)
        assert "--mean 0 --std 255" in raised.value.hint


@pytest.mark.parametrize("steps", FOR_NEITHER.values(), ids=FOR_NEITHER)
def test_other_beginnings_take_any_contract(steps: list[Step]) -> None:
    for spec in (RAW, NORMALIZED, IMAGENET, UNIT):
        assert check(begins_with(*steps), spec) is None


def test_an_input_that_is_read_twice_is_not_normalized() -> None:
    model = begins_with(("Sub", [127.5]), ("Mul", [0.0078125]), last_reader=False)
    assert own_normalization(model) is None


def test_a_padded_input_keeps_its_scale_and_offset() -> None:
    own = own_normalization(begins_with(("Sub", [127.5]), ("Div", [128.0])))
    assert own is not None
    assert own.operators == ("Sub", "Div")
    np.testing.assert_allclose((own.scale, own.offset), ([1 / 128] * 3, [-127.5 / 128] * 3))


@pytest.fixture
def inside(tmp_path: Path, tools: SimpleNamespace) -> Path:
    """A file whose graph begins with (x - 127.5) / 128, in channels last."""
    onnx.save(tools.build(inside=True, nhwc=True), str(tmp_path / "inside.onnx"))
    return tmp_path / "inside.onnx"


def test_export_refuses_a_second_normalization(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="begins with Sub and Mul"):
        export_onnx(inside, tmp_path / "b", spec=NORMALIZED)
    assert not (tmp_path / "b").exists()
    result = export_onnx(inside, tmp_path / "b", spec=RAW)
    assert result.summary.contract.own_normalization == ("Sub", "Mul")
    assert result.summary.contract.right is True


def test_the_command_names_the_preset_and_force_warns(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", str(inside), "--out", str(tmp_path / "b"), "--preset", "insightface"]
    assert run(export) == 4
    message = capsys.readouterr().err
    assert "--preset raw" in message
    assert "--force" in message
    assert run([*export, "--force"]) == 0
    assert "warning: the network normalizes pixels 0..255 itself" in capsys.readouterr().err
    history = open_bundle(tmp_path / "b").history[-1]
    assert history["options"]["force"] is True
    assert history["summary"]["contract"]["right"] is False


PEOPLE, IMAGES = 30, 4


def patterns() -> Faces:
    """Each person is a pattern of 14x14 colours under noise, mostly in red and green."""
    people = np.random.default_rng(0).uniform(0, 255, (PEOPLE, 14, 14, 3))

    def read(index: int) -> np.ndarray:
        noise = np.random.default_rng(index + 1).uniform(0, 255, (14, 14, 3))
        share = np.array([0.4, 0.4, 0.9])
        face = people[index // IMAGES] * (1 - share) + noise * share
        return face.astype(np.uint8).repeat(8, 0).repeat(8, 1)

    labels = tuple(i // IMAGES for i in range(PEOPLE * IMAGES))
    return Faces("patterns", tuple(map(str, range(len(labels)))), labels, read)


def trained_on(spec: InputSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A network for one contract: coarse and saturating, as trained layers are."""

    def embed(inputs: np.ndarray) -> np.ndarray:
        mean, std = (np.float32(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
        pixels = (inputs * std + mean)[:, :: 1 if spec.channels == "RGB" else -1]
        small = pixels.reshape(len(pixels), 3, 14, 8, 14, 8).mean((3, 5))
        steps = np.clip(np.round((small - 127.5) / 20), -4, 4) * channels(1, 1, 0.3)
        return steps.reshape(len(steps), -1).astype(np.float32)

    return embed


@pytest.mark.parametrize("declared", [RAW, IMAGENET, make_spec("insightface", channels="BGR")])
def test_faces_refuse_a_contract_that_separates_them_worse(declared: InputSpec) -> None:
    model, embed = begins_with(), trained_on(NORMALIZED)
    with pytest.raises(ModelError, match="is not the one that this network was trained") as raised:
        check_contract(model, embed, declared, patterns())
    assert "export with --preset insightface; --force" in raised.value.hint
    assert raised.value.exit_code == 4


def test_faces_confirm_the_contract(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = check_contract(begins_with(), trained_on(IMAGENET), IMAGENET, patterns())
    assert (result.right, result.faces) == (True, "patterns")
    assert "the input contract is right for patterns" in caplog.text


def test_a_forced_contract_is_recorded_as_wrong(caplog: pytest.LogCaptureFixture) -> None:
    bgr = make_spec("insightface", channels="BGR")
    result = check_contract(begins_with(), trained_on(bgr), NORMALIZED, patterns(), force=True)
    assert result.right is False
    assert "export with --preset insightface --channels BGR" in caplog.text


def test_a_contract_that_is_little_behind_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """The network looks at green and hardly at red, so BGR is behind by what other people may undo."""

    def embed(inputs: np.ndarray) -> np.ndarray:
        rows = trained_on(NORMALIZED)(inputs).reshape(-1, 3, 196) * np.float32([[[0.09], [1], [0]]])
        return rows.reshape(len(rows), -1)

    bgr = make_spec("insightface", channels="BGR")
    result = check_contract(begins_with(), embed, bgr, patterns())
    assert result.right is None
    assert "could not be checked on patterns: trained with --preset insightface" in caplog.text
    assert "is behind by too little to tell" in caplog.text


def test_too_few_people_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    result = check_contract(begins_with(), trained_on(RAW), NORMALIZED, open_faces("synthetic:3x2"))
    assert (result.right, result.faces) == (None, None)
    assert "the input contract was not checked: " in caplog.text


def test_strangers_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    shuffled = np.random.default_rng(1).permutation(patterns().labels)
    faces = Faces("strangers", patterns().keys, tuple(map(int, shuffled)), patterns().read)
    result = check_contract(begins_with(), trained_on(NORMALIZED), RAW, faces)
    assert result.right is None
    assert "could not be checked on strangers: no candidate separates" in caplog.text


@pytest.mark.real
@pytest.mark.parametrize("file", ["mobilefacenet_y1.onnx", "sface_fp32.onnx"])
def test_real_networks_that_normalize_pixels(file: str, real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="begins with Sub and Mul") as raised:
        export_onnx(real_data / file, tmp_path / "b", spec=NORMALIZED)
    assert "--preset raw" in raised.value.hint


@pytest.mark.real
def test_a_real_network_under_a_wrong_contract(
    real_data: Path, few_real_faces: Faces, tmp_path: Path
) -> None:
    wrong, network = make_spec("raw", size="112x96"), real_data / "mobilefacenet_casia.onnx"
    with pytest.raises(ModelError, match="is not the one that this network") as raised:
        export_onnx(network, tmp_path / "b", spec=wrong, faces=few_real_faces)
    assert "--preset insightface --size 112x96" in raised.value.hint


# A normalization that was folded into the first layer's weights, which no operator shows.


def folded(path: Path) -> Path:
    """A network for pixels 0..255: (x - 127.5) / 128 stands in the weights and biases of its Conv."""
    random = np.random.default_rng(3)
    weights = random.normal(0, 0.2, (16, 3, 7, 7))
    arrays = {
        "w": weights / 128,
        "b": random.normal(0, 0.1, 16) - weights.sum(axis=(1, 2, 3)) * 127.5 / 128,
        "dense": random.normal(0, 0.05, (16 * 256, 64)),
        "bias": random.normal(0, 0.1, 64),
    }
    nodes = [
        helper.make_node("Conv", ["data", "w", "b"], ["conv"], strides=[7, 7]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["out"]),
    ]
    sides = (("data", ("N", 3, 112, 112)), ("out", ("N", 64)))
    data, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in sides)
    stored = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "folded", [data], [out], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def test_a_folded_normalization_is_hinted_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folded(tmp_path / "folded.onnx"))
    for preset, hinted in (("insightface", True), ("imagenet", True), ("raw", False)):
        root = tmp_path / f"{preset}.bundle"
        assert run(["export", source, "--out", str(root), "--preset", preset]) == 0
        message = capsys.readouterr().err
        assert ("does the network's first layer normalize pixels?" in message) == hinted
        assert ("Compare --preset raw" in message) == hinted
        verdict = open_bundle(root).history[0]["summary"]["contract"]["verdict"]
        assert ("--preset raw" in verdict) == hinted


@pytest.mark.real
def test_a_real_network_for_normalized_pixels_under_raw(
    real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = InputSpec(width=96, mean=(0.0,) * 3, std=(1.0,) * 3)
    export_onnx(real_data / "mobilefacenet_casia.onnx", tmp_path / "b", spec=spec)
    assert "Compare --preset insightface" in caplog.text


def test_a_long_chain_is_followed_to_its_end() -> None:
    """50,000 operators are the limit of a network; a search among all of them for each took hours."""
    count, kind = 20_000, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Identity", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    nodes.append(helper.make_node("Mul", [f"t{count}", "half"], ["y"]))
    face = helper.make_tensor_value_info("t0", kind, ["n", 3, 8, 8])
    out = helper.make_tensor_value_info("y", kind, ["n", 3, 8, 8])
    half = numpy_helper.from_array(np.float32([0.5]).reshape(1, 1, 1, 1), "half")
    own = own_normalization(helper.make_model(helper.make_graph(nodes, "g", [face], [out], [half])))
    assert own is not None
    assert own.scale == (0.5, 0.5, 0.5)
