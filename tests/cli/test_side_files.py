"""A bundle's networks are single files: weights in another file, which no hash covers, are refused."""

import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.cli.main import run
from fr_edge.errors import ModelError
from fr_edge.files import sha256
from fr_edge.onnx_file import parse_onnx, read_onnx

FACES = ["--faces", "synthetic:16x2@5", "-q"]
SIDE = "weights.bin"
REFUSED = "keeps weights in side files|sparse weights|cannot be inlined"


def move_weights_out(root: Path, name: str, to: str = SIDE) -> None:
    """Move a network's weights into a file that the manifest does not list; all hashes match."""
    model = onnx.load(root / name)
    side = root / to
    onnx.external_data_helper.convert_model_to_external_data(model, location=to, size_threshold=0)
    onnx.save(model, str(side.with_name("moved.onnx")))
    moved = side.with_name("moved.onnx")
    kept = open_bundle(root).files
    with transaction(root, "tamper", {}) as change:
        change.path(name, kept[name].role, kept[name].of).write_bytes(moved.read_bytes())
        for made, entry in kept.items():
            if made != name and not made.startswith("reports/"):
                change.path(made, entry.role).write_bytes((root / made).read_bytes())
    moved.unlink()
    assert run(["inspect", str(root), "-q"]) in (0, 4)


@pytest.fixture
def moved(bundle: Path) -> Path:
    move_weights_out(bundle, "model.onnx")
    return bundle


def test_every_command_refuses_weights_in_an_unlisted_file(moved: Path, capsys: Any) -> None:
    lines = [
        ["export", str(moved), "--out", str(moved)],
        ["find-preprocessing", str(moved), *FACES],
        ["calibrate", str(moved), *FACES],
        ["build-engine", str(moved), "--fp32", "--backend", "onnxruntime"],
        ["verify", str(moved), "--engine", "int8"],
        ["inspect", str(moved)],
    ]
    for line in lines:
        assert run(line) == 4, line
        message = capsys.readouterr().err
        assert "keeps weights in side files" in message, (line, message)


def test_an_engine_that_reads_another_file_is_not_opened(bundle: Path, capsys: Any) -> None:
    """Also not from the folder in which the command runs, where onnxruntime would look."""
    name = "engines/onnxruntime-fp32.onnx"
    model = onnx.load(bundle / name)
    onnx.external_data_helper.convert_model_to_external_data(model, location=SIDE, size_threshold=0)
    here = bundle.parent / "here"
    here.mkdir()
    onnx.save(model, str(here / "engine.onnx"))
    data = (here / "engine.onnx").read_bytes()
    facts = json.loads((bundle / f"{name}.json").read_text())
    with transaction(bundle, "tamper", {}) as change:
        engine, sidecar = change.path(name, "engine"), change.path(f"{name}.json", "fingerprint")
        engine.write_bytes(data)
        sidecar.write_text(json.dumps({**facts, "sha256": sha256(engine), "size": len(data)}))
    before = Path.cwd()
    os.chdir(here)
    try:
        line = ["embed", str(bundle), *FACES, "--engine", "fp32", "--out", "e.npz"]
        assert run(line) == 4
        assert "keeps weights in side files" in capsys.readouterr().err
    finally:
        os.chdir(before)


def test_files_that_are_not_listed_are_named(bundle: Path, capsys: Any) -> None:
    (bundle / "reports" / "notes.txt").write_text("mine")
    (bundle / "weights.bin").write_text("theirs")
    (bundle / "link").symlink_to("/etc")
    (bundle / "\x1b[2Jx").write_text("")
    (bundle / "checkpoint").mkdir()
    (bundle / "checkpoint" / "last.pt").write_text("distill's own")
    assert run(["inspect", str(bundle), "--json", "-q"]) == 0
    named = json.loads(capsys.readouterr().out)["unlisted"]
    assert sorted(named) == ["'\\x1b[2Jx'", "link", "reports/notes.txt", "weights.bin"]
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "not part of the bundle: weights.bin" in text
    assert "\x1b" not in text


def test_a_model_of_ones_own_may_have_side_files(network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    onnx.save(
        model,
        str(tmp_path / "big.onnx"),
        save_as_external_data=True,
        location="w",
        size_threshold=0,
    )
    assert run(["inspect", str(tmp_path / "big.onnx"), "-q"]) == 0
    assert run(["export", str(tmp_path / "big.onnx"), "--out", str(tmp_path / "b.bundle"),
                "--preset", "insightface", "-q"]) == 0  # fmt: skip
    assert b"location" not in (tmp_path / "b.bundle" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "place", ["initializer", "attribute", "subgraph", "sparse", "function", "other opset"]
)
def test_side_files_are_found_wherever_a_tensor_is(place: str, tmp_path: Path) -> None:
    outside = onnx.TensorProto(name="w", dims=[1], data_type=onnx.TensorProto.FLOAT)
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="w")
    (tmp_path / "w").write_bytes(bytes(4))
    face = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    opsets = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph([relu], "g", [face], [out])
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=outside)
    if place == "initializer":
        model.graph.initializer.append(outside)
    elif place == "attribute":
        model.graph.node.append(constant)
    elif place == "subgraph":
        body = onnx.helper.make_graph([constant], "b", [], [out])
        node = onnx.helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body)
        model.graph.node.append(node)
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside)
    else:
        if place == "other opset":
            opsets = [onnx.helper.make_opsetid("", 16)]
        call = onnx.helper.make_function("own", "F", [], ["c"], [constant], opsets)
        model.functions.append(call)
        model.graph.node.append(onnx.helper.make_node("F", [], ["z"], domain="own"))
        model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=REFUSED):
        read_onnx(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=REFUSED):
        parse_onnx(model.SerializeToString(), "m")
