"""What leaves a machine: networks without their layers' names, documents without the machine's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fr_edge.bundle.bundle import open_bundle
from fr_edge.runtime.acceptance.disclosure import (
    copy_without_names,
    machine_names,
    number_names,
    without_names,
)
from fr_edge.runtime.session import open_session

SECRETS = (
    "/home/ada/faces/grace.png",
    "~/models/door.onnx",
    "file:///srv/people",
    "/mnt/My Disk/people",
    r"C:\Users\ada",
    "GPU-12345678-9abc-def0-1234-56789abcdef0",
    "12345678-9ABC-def0-1234-56789abcdef0",
    "00:1b:21:aa:bb:cc",
    "1424521000123",
    "ada",
    "edge-box-7",
)
KEPT = (
    "NVIDIA Jetson Orin Nano Developer Kit, 36.4.3, TensorRT 10.3.0.30, CUDA 12.6/13.0, 8.7",
    "RAM 2448/7620MB CPU [5%@1510] cpu@45.5C VDD_IN 4.2W 5321mW/5321mW GR3D_FREQ 0%",
    "conv_3 + prelu_4 was to be INT8 and computes in FP16: 0.97 ms and/or N/A",
    "radar adam 0000:01:00.0 60%",
)


def test_a_document_keeps_its_figures_and_loses_names() -> None:
    names = {"ada", "edge-box-7", "1424521000123"}
    document = {"texts": [f"before {s}, after" for s in SECRETS], "kept": list(KEPT), "n": 1.5}
    document[f"key of {SECRETS[0]}"] = True
    cleaned = without_names(document, names)
    text = json.dumps(cleaned)
    assert [s for s in SECRETS if s in text.replace("radar adam", "")] == []
    assert cleaned["kept"] == list(KEPT)
    assert all(t.startswith("before <") and t.endswith(">, after") for t in cleaned["texts"])
    assert cleaned["n"] == 1.5
    assert without_names({"a": "ada"}, ()) == {"a": "ada"}


def test_folders_that_are_called_as_the_format_calls_its_own_leave_it_readable() -> None:
    document = {"engines": [{"bundle": "sample", "precision": "int8", "text": "of ada's bundle"}]}
    names = ("bundle", "sample", "int8", "engines", "ada")
    cleaned = without_names(document, names)
    assert cleaned["engines"][0].pop("text") != document["engines"][0].pop("text")
    assert cleaned == document


def test_a_program_on_the_gpu_is_not_named() -> None:
    text = without_names("other load on the GPU: ada's viewer (4711); too short", ())
    assert text == "other load on the GPU: a program; too short"


def test_the_names_of_this_machine_are_known(tmp_path: Path, monkeypatch: Any) -> None:
    serial = tmp_path / "proc/device-tree/serial-number"
    serial.parent.mkdir(parents=True)
    serial.write_bytes(b"1424521000123\0")
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0/address").write_text("48:b0:2d:11:22:33\n")
    monkeypatch.setattr("socket.gethostname", lambda: "edge-box-7.example.org")
    for user, known in (("lovelace", True), ("nvidia", False), ("root", False)):
        monkeypatch.setattr("getpass.getuser", lambda user=user: user)
        names = machine_names(tmp_path)
        assert {"edge-box-7", "edge-box-7.example.org", "1424521000123"} <= names
        assert "48:b0:2d:11:22:33" in names
        assert (user in names) is known


def test_a_copy_computes_the_same_and_shares_its_numbers(mini: Path, tmp_path: Path) -> None:
    source = open_bundle(mini)
    copy_without_names(source, tmp_path / "copy.bundle")
    copy = open_bundle(tmp_path / "copy.bundle")
    assert set(copy.files) == {n for n in source.files if n.startswith(("model.", "golden"))} - {
        "model.pt"
    }
    images = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8)
    original = {}
    for precision in ("fp32", "fp16", "int8"):
        sides = []
        for bundle in (source, copy):
            with open_session(bundle, precision, artifact="graph") as session:
                sides.append(session.embed(images))
        np.testing.assert_array_equal(*sides)
        model = onnx.load(copy.path(f"model{'' if precision == 'fp32' else '.' + precision}.onnx"))
        onnx.checker.check_model(model, full_check=True)
        names = {node.name for node in model.graph.node}
        assert not names & {"stem", "dw", "project", "wide", "pool"}
        original[precision] = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert original["fp32"] == original["fp16"] == original["int8"]


def test_names_within_a_branch_and_metadata_go_too(tools: SimpleNamespace) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["secret_x"], ["secret_y"], "secret_node")],
        "secret_branch",
        [],
        [helper.make_tensor_value_info("secret_y", 1, [1])],
    )
    nodes = [
        helper.make_node("Cast", ["face"], ["secret_flag"], "", to=9),
        helper.make_node("Neg", ["face"], ["secret_x"], "secret_neg", doc_string="secret"),
        helper.make_node(
            "If", ["secret_flag"], ["embedding"], "", then_branch=branch, else_branch=branch
        ),
    ]
    info = [helper.make_tensor_value_info(name, 1, [1]) for name in ("face", "embedding")]
    model = helper.make_model(
        helper.make_graph(nodes, "secret", info[:1], info[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="secret",
    )
    helper.set_model_props(model, {"secret": "secret"})
    before = tools.run(model, np.array([1.5], np.float32))
    number_names(model, {})
    assert b"secret" not in model.SerializeToString()
    np.testing.assert_array_equal(tools.run(model, np.array([1.5], np.float32)), before)


@pytest.fixture
def tools() -> SimpleNamespace:
    import onnxruntime as ort

    def compute(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString())
        return session.run(None, {"face": x})[0]

    return SimpleNamespace(run=compute)
