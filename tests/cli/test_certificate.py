"""A PASSED page is proof: what broke it once, and engines tampered with, end to end.

Every test goes through the command line; a tampered bundle is consistent in itself (manifest and
sidecar name the new bytes), as somebody who edits it by hand would leave it.
"""

import hashlib
import io
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import write_network
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.cli.main import run
from fr_edge.runtime.machine.backends import lacking
from fr_edge.runtime.session import open_session

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from engine_edits import OUTPUTS  # noqa: E402

Captured = pytest.CaptureFixture[str]

ENGINE = "engines/onnxruntime-int8.onnx"
SIDECAR = f"{ENGINE}.json"
BENCHMARK = ["--duration", "1", "--json", "-q"]


def seal(root: Path, engine: bytes, **sidecar: object) -> None:
    """Put other bytes in the engine's place; manifest and sidecar agree with them."""
    facts = json.loads((root / SIDECAR).read_text())
    facts |= {"sha256": hashlib.sha256(engine).hexdigest(), **sidecar}
    with transaction(root, "tamper", {}) as change:
        change.path(ENGINE, "int8 engine").write_bytes(engine)
        change.path(SIDECAR, "engine fingerprint").write_text(json.dumps(facts))


def edit_engine(root: Path, edit: Callable[[ModelProto], None]) -> None:
    model = onnx.load(root / ENGINE)
    edit(model)
    seal(root, model.SerializeToString())


def shuffle_weights(model: ModelProto) -> None:
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2:
            moved = random.permutation(values.reshape(-1)).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))


def flip_a_bit_of_a_scale(model: ModelProto) -> None:
    """The lowest bit of the exponent: one scale doubles or halves. Without INT8 kernels for this CPU
    the engine has scales of a BatchNormalization only."""
    tensor = next(t for t in model.graph.initializer if "scale" in t.name)
    bits = numpy_helper.to_array(tensor).astype(np.float32).view(np.uint32) ^ np.uint32(1 << 23)
    tensor.CopyFrom(numpy_helper.from_array(bits.view(np.float32), tensor.name))


def answer(args: list[str], capsys: Captured) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(args)
    return code, json.loads(capsys.readouterr().out)


def reports(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "reports").glob("*")}


def page_text(root: Path) -> str:
    """The words of report.html in one line."""
    page = re.sub(r"<(style|svg).*?</\1>", "", (root / "report.html").read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def refused(args: list[str], capsys: Captured) -> str:
    """The message of a command that must find the bundle bad, and must write nothing."""
    root = Path(args[1])
    before = reports(root)
    assert run(args) == 4
    assert reports(root) == before
    return capsys.readouterr().err


# 1. An engine with shuffled weights, of which manifest and sidecar know nothing else.


def test_an_engine_with_shuffled_weights_never_passes(bundle: Path, capsys: Captured) -> None:
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    assert answer(verify, capsys)[0] == 0
    edit_engine(bundle, shuffle_weights)
    code, result = answer(verify, capsys)
    assert (code, result["passed"], result["verdict"]) == (1, False, "FAILED")
    digest = hashlib.sha256((bundle / ENGINE).read_bytes()).hexdigest()
    assert result["artifact"]["sha256"] == digest
    code, speed = answer(["benchmark", str(bundle), "--engine", "int8", *BENCHMARK], capsys)
    assert {entry["verdict"] for entry in speed["runs"]} == {"INVALID"}
    assert "not the original network" in str(speed["runs"][0]["reasons"])
    assert run(["report", str(bundle), "-q"]) == 0
    banners = re.findall(r"(PASSED|FAILED) INT8 engine on onnxruntime(.*?)Its", page_text(bundle))
    assert banners[0][0] == "FAILED"
    assert all("STALE" in rest for verdict, rest in banners if verdict == "PASSED")


# 2. Exported and calibrated, but never built.


@pytest.mark.parametrize("command", ["verify", "evaluate", "benchmark", "embed"])
def test_an_engine_that_was_not_built_is_refused(
    command: str, calibrated: Path, tmp_path: Path, capsys: Captured
) -> None:
    root = tmp_path / "b"
    shutil.copytree(calibrated, root)
    more = {
        "evaluate": ["--protocol", "synthetic:12x3"],
        "embed": ["--faces", "synthetic:2x2", "--out", str(tmp_path / "e.npz")],
    }.get(command, [])
    message = refused([command, str(root), "--engine", "int8", "-q", *more], capsys)
    assert "has no int8 engine" in message
    assert f"fr-edge build-engine {root} --int8" in message


def test_the_page_of_an_unbuilt_engine_shows_no_pass(
    calibrated: Path, tmp_path: Path, capsys: Captured
) -> None:
    root = tmp_path / "b"
    shutil.copytree(calibrated, root)
    assert run(["verify", str(root), "--engine", "int8", "--artifact", "graph", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("PASSED, of the graph, not of an engine: ")
    junit = root.parent / "j.xml"
    args = ["verify", str(root), "--engine", "int8", "--artifact", "graph", "--junit", str(junit)]
    code, result = answer([*args, "--json", "-q"], capsys)
    assert (code, result["verdict"], result["judged"]) == (0, "PASSED", "graph")
    assert result["artifact"]["kind"] == "graph"
    assert "int8 graph, not an engine, on onnxruntime" in junit.read_text()
    assert run(["report", str(root), "-q"]) == 0
    assert "the graph was judged, not an engine (golden faces only)" in page_text(root)
    assert "PASSED INT8 engine" not in page_text(root)


# 3. The wrong input contract.


def write_contract_network(path: Path) -> Path:
    """A network that normalizes pixels itself and sees contrast, up to what its rounding leaves."""
    random = np.random.default_rng(3)
    arrays = {
        "mean": np.float32(127.5),
        "scale": np.float32(1 / 128),
        "fine": np.float32(64),
        "w": np.float32(random.normal(0, 0.2, (16, 3, 7, 7))),
        "dense": np.float32(random.normal(0, 0.05, (16 * 256, 64))),
        "bias": np.float32(random.normal(0, 0.1, 64)),
    }
    nodes = [
        helper.make_node("Sub", ["data", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "fine"], ["finer"]),
        helper.make_node("Round", ["finer"], ["rounded"]),
        helper.make_node("Conv", ["rounded", "w"], ["conv"], strides=[7, 7]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ("N", 3, 112, 112))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ("N", 64))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def test_the_wrong_contract_never_passes(tmp_path: Path, distinct: Path, capsys: Captured) -> None:
    """Refused at export; forced, the reference is found unfit to judge by, and people are asked for."""
    source = str(write_contract_network(tmp_path / "net.onnx"))
    verdicts = {}
    for preset in ("raw", "insightface"):
        root = str(tmp_path / f"{preset}.bundle")
        export = ["export", source, "--out", root, "--preset", preset, "-q"]
        if preset == "insightface":
            assert run(export) == 4
            assert "--preset raw" in capsys.readouterr().err
            export.append("--force")
        assert run(export) == 0
        assert run(["build-engine", root, "--fp32", "--backend", "onnxruntime", "-q"]) == 0
        verify = ["verify", root, "--engine", "fp32", "--faces", str(distinct), "--json", "-q"]
        verdicts[preset] = answer(verify, capsys)
    code, right = verdicts["raw"]
    assert (code, right["verdict"]) == (0, "PASSED")
    code, wrong = verdicts["insightface"]
    assert (code, wrong["verdict"], wrong["passed"]) == (1, "CANNOT JUDGE", False)
    assert "keep the gallery" not in json.dumps(wrong)
    assert "as export found; it was forced" in json.dumps(wrong["reasons"])


# 4. Weaker runs, 5. other backends, 6. other sets of the same name.


def test_a_run_without_people_replaces_no_certificate(
    bundle: Path, distinct: Path, capsys: Captured
) -> None:
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    code, strong = answer([*verify, "--faces", str(distinct)], capsys)
    assert (code, strong["faces"]["identities"]) == (0, 40)
    assert run(["report", str(bundle), "-q"]) == 0
    before = reports(bundle)
    code, weak = answer(verify, capsys)
    assert code == 0
    assert weak["report"] != strong["report"]
    after = reports(bundle)
    assert {name: after[name] for name in before} == before
    # The page shows all reports, so a further one puts it out of date; that is said. (The same run
    # again within a second writes the same bytes, and the page stays right.)
    assert run(["report", str(bundle), "-q"]) == 0
    capsys.readouterr()
    assert run(["verify", str(bundle), "--engine", "fp32"]) == 0
    assert "report.html" in capsys.readouterr().err


def test_a_compile_check_erases_nothing(bundle: Path, distinct: Path, capsys: Captured) -> None:
    pytest.importorskip("tensorrt_rtx")
    for args in (
        ["verify", str(bundle), "--engine", "int8", "--faces", str(distinct), "-q"],
        ["evaluate", str(bundle), "--engine", "int8", "--protocol", str(distinct), "-q"],
        ["benchmark", str(bundle), "--engine", "int8", "--duration", "1", "-q"],
    ):
        assert run(args) in (0, 1)
    before, engine = reports(bundle), (bundle / ENGINE).read_bytes()
    assert run(["build-engine", str(bundle), "--int8", "--backend", "tensorrt-rtx", "-q"]) == 0
    assert list((bundle / "engines").glob("tensorrt-rtx*.plan"))
    assert reports(bundle) == before
    assert (bundle / ENGINE).read_bytes() == engine
    capsys.readouterr()
    assert run(["inspect", str(bundle)]) == 0
    assert "stale" not in capsys.readouterr().out
    assert run(["check", str(bundle)]) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if "tensorrt-rtx" in row]
    lack = lacking("tensorrt-rtx")
    assert line.endswith(f": does not run here: {lack}" if lack else ": is for this machine")


def write_bin(path: Path, people: Path, seed: int) -> Path:
    """A set as insightface lays it out, 20 genuine and 20 impostor pairs."""
    folders, random = sorted(people.iterdir()), np.random.default_rng(seed)
    images, same = [], []
    for number in range(40):
        a, b = random.choice(len(folders), 2, replace=False)
        genuine = number % 2 == 0
        for person, face in ((a, 0), (a if genuine else b, 1)):
            stream = io.BytesIO()
            Image.open(folders[person] / f"{face}.png").save(stream, "PNG")
            images.append(stream.getvalue())
        same.append(genuine)
    path.parent.mkdir()
    path.write_bytes(pickle.dumps((images, same)))
    return path


def test_two_sets_of_one_name_both_stay(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    first = write_bin(tmp_path / "a" / "lfw.bin", distinct, 1)
    second = write_bin(tmp_path / "b" / "lfw.bin", distinct, 2)
    names = []
    for path in (first, second, first):
        args = ["evaluate", str(bundle), "--engine", "int8", "--protocol", str(path)]
        code, result = answer([*args, "--json", "-q"], capsys)
        assert code == 0
        names.append(result["report"])
    assert names[0] == names[2] != names[1]
    assert all((bundle / name).is_file() for name in names)


# 7. A calibration on faces that are not aligned.


def test_unaligned_photographs_replace_no_calibration(
    bundle: Path, tmp_path: Path, distinct: Path, capsys: Captured
) -> None:
    folder = tmp_path / "photographs"
    for number, path in enumerate(sorted(distinct.rglob("*.png"))[:64]):
        pixels = np.asarray(Image.open(path))
        moved = np.roll(pixels, (number * 13 % 112, number * 29 % 112), (0, 1))
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(moved).save(folder / path.parent.name / path.name)
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 0
    content = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    capsys.readouterr()
    args = ["calibrate", str(bundle), "--faces", str(folder), "-q"]
    assert run(args) == 4
    message = capsys.readouterr().err
    assert "do not look aligned" in message
    assert "--force" in message
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == content
    assert run([*args, "--force"]) == 0
    assert (bundle / "calibration.json").read_bytes() != content[bundle / "calibration.json"]


# Further ways to tamper.


def test_one_bit_of_one_scale(bundle: Path, capsys: Captured) -> None:
    """With everything consistent it is for the gates to judge; the sha256 shows another engine."""
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    before = answer(verify, capsys)[1]
    data = bytearray((bundle / ENGINE).read_bytes())
    data[len(data) // 2] ^= 1
    kept = (bundle / ENGINE).read_bytes()
    (bundle / ENGINE).write_bytes(data)
    assert "sha256" in refused(verify, capsys)
    (bundle / ENGINE).write_bytes(kept)
    edit_engine(bundle, flip_a_bit_of_a_scale)
    after = answer(verify, capsys)[1]
    assert after["artifact"]["sha256"] != before["artifact"]["sha256"]
    assert after["cosine"]["min"] < before["cosine"]["min"]
    assert before["report"] != after["report"]
    assert run(["inspect", str(bundle)]) == 0
    assert "stale" in capsys.readouterr().out


EMBEDDING = "each dimension of the embedding"
LENGTH = "length of the embeddings: min ratio"
CAUGHT_BY = {
    "last normalization added": LENGTH,
    "embeddings twice as long": LENGTH,
    "two dimensions swapped": EMBEDDING,
    "one dimension dead": EMBEDDING,
    "one dimension's sign flipped": EMBEDDING,
    "the first face's embedding for all": EMBEDDING,
    "third face of a batch gets the second's": "min cosine",
    "a single face goes wrong": "batches of 1, 2, 3, 4, 8 and 16 faces",
    "batches of three faces go wrong": "batches of 1, 2, 3, 4, 8 and 16 faces",
    "NaN for one face of a batch": "",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_engine_that_gives_out_other_numbers(name: str, bundle: Path, capsys: Captured) -> None:
    """On the golden faces alone, where nobody shows a loss of TAR."""
    edit_engine(bundle, OUTPUTS[name])
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    if not CAUGHT_BY[name]:
        assert "not finite" in refused(verify, capsys)
        return
    code, result = answer(verify, capsys)
    assert (code, result["verdict"]) == (1, "FAILED")
    failed = [gate["name"] for gate in result["gates"] if not gate["passed"]]
    assert any(gate.startswith(CAUGHT_BY[name]) for gate in failed)


def edit_golden(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    with np.load(root / "golden.npz") as file:
        arrays = dict(file)
    edit(arrays)
    with transaction(root, "tamper", {}) as change:
        np.savez(change.path("golden.npz", "golden"), **arrays)


def test_golden_embeddings_made_by_a_tampered_engine(bundle: Path, capsys: Captured) -> None:
    edit_engine(bundle, shuffle_weights)
    with open_session(bundle, "int8") as session:
        edit_golden(bundle, lambda a: a.update(embeddings=session.embed(a["faces"])))
    code, result = answer(["verify", str(bundle), "--engine", "int8", "--json", "-q"], capsys)
    assert (code, result["verdict"]) == (1, "FAILED")
    assert "fp32 model is the original" in result["reasons"][0]["reason"]


def test_golden_faces_that_are_all_alike_show_nothing(bundle: Path, capsys: Captured) -> None:
    """32 times one face: an engine that gives everybody that face's embedding is like the original."""

    def repeat(arrays: dict[str, Any]) -> None:
        for key in ("faces", "embeddings"):
            arrays[key] = np.repeat(arrays[key][:1], len(arrays[key]), axis=0)

    edit_golden(bundle, repeat)
    edit_engine(bundle, OUTPUTS["the first face's embedding for all"])
    code, result = answer(["verify", str(bundle), "--engine", "int8", "--json", "-q"], capsys)
    assert (code, result["passed"]) == (1, False)
    assert "all these faces the same embedding" in json.dumps(result["reasons"])


def other_bundle(folder: Path, preset: str, seed: int) -> Path:
    """A network of the same shape, or the same one under another contract, with its INT8 engine."""
    source = write_network(folder / "other.onnx", seed=seed)
    root = folder / "other.bundle"
    assert run(["export", str(source), "--out", str(root), "--preset", preset, "-q"]) == 0
    assert run(["calibrate", str(root), "--faces", "synthetic:16x2@5", "-q"]) == 0
    assert run(["build-engine", str(root), "--int8", "--backend", "onnxruntime", "-q"]) == 0
    return root


def test_the_engine_of_another_network_of_the_same_shape(
    bundle: Path, tmp_path: Path, distinct: Path, capsys: Captured
) -> None:
    other = other_bundle(tmp_path, "insightface", seed=1)
    data, sidecar = (other / ENGINE).read_bytes(), (other / SIDECAR).read_bytes()
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    original = (bundle / SIDECAR).read_bytes()
    with transaction(bundle, "copy", {}) as change:  # engine and sidecar as they are
        change.path(ENGINE, "int8 engine").write_bytes(data)
        change.path(SIDECAR, "engine fingerprint").write_bytes(sidecar)
    assert "was built from another model.int8.onnx" in refused(verify, capsys)
    with transaction(bundle, "copy", {}) as change:  # the engine under the bundle's own sidecar
        change.path(SIDECAR, "engine fingerprint").write_bytes(original)
    assert "not the engine that its fingerprint describes" in refused(verify, capsys)
    seal(bundle, data)  # a sidecar that was made to fit
    code, result = answer([*verify, "--faces", str(distinct)], capsys)
    assert (code, result["verdict"]) == (1, "FAILED")
    code, speed = answer(["benchmark", str(bundle), "--engine", "int8", *BENCHMARK], capsys)
    assert speed["runs"][0]["verdict"] == "INVALID"


def test_the_right_network_under_another_contract(
    bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    """An engine for raw pixels gets normalized ones: the same weights, other embeddings."""
    other = other_bundle(tmp_path, "raw", seed=0)
    seal(bundle, (other / ENGINE).read_bytes())
    verify = ["verify", str(bundle), "--engine", "int8", "--json", "-q"]
    code, result = answer(verify, capsys)
    assert (code, result["verdict"]) == (1, "FAILED")


def test_swapped_sidecars(bundle: Path, capsys: Captured) -> None:
    """The INT8 engine with the FP32 engine's sidecar."""
    fp32 = (bundle / "engines/onnxruntime-fp32.onnx.json").read_bytes()
    with transaction(bundle, "swap", {}) as change:
        change.path(SIDECAR, "engine fingerprint").write_bytes(fp32)
    verify = ["verify", str(bundle), "--engine", "int8", "-q"]
    refused(verify, capsys)


def test_the_fp32_engine_with_its_own_sidecar_in_the_int8_engines_place(
    bundle: Path, capsys: Captured
) -> None:
    """Both agree with each other and with the manifest, and not with the name."""
    with transaction(bundle, "swap", {}) as change:
        for name, role in ((ENGINE, "int8 engine"), (SIDECAR, "engine fingerprint")):
            other = bundle / name.replace("int8", "fp32")
            change.path(name, role).write_bytes(other.read_bytes())
    for command in ("verify", "benchmark"):
        asked = [command, str(bundle), "--engine", "int8", "-q"]
        assert "engine for onnxruntime in fp32, not of" in refused(asked, capsys)
    refused(["check", str(bundle), "-q"], capsys)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_engine(share: float, bundle: Path, capsys: Captured) -> None:
    data = (bundle / ENGINE).read_bytes()
    short = data[: int(len(data) * share)]
    (bundle / ENGINE).write_bytes(short)
    verify = ["verify", str(bundle), "--engine", "int8", "-q"]
    refused(verify, capsys)
    (bundle / ENGINE).write_bytes(data)
    seal(bundle, short)  # manifest and sidecar agree: the file itself is no model
    refused(verify, capsys)


def test_a_sidecar_edited_by_hand(bundle: Path, capsys: Captured) -> None:
    facts = json.loads((bundle / SIDECAR).read_text())
    verify = ["verify", str(bundle), "--engine", "int8", "-q"]
    for text in (
        "",
        "[]",
        json.dumps(facts | {"layers": "many"}),
        json.dumps({**facts, "sha256": 7}),
        json.dumps({**facts, "layers": {"int8": -3}}),
        json.dumps({**facts, "integer_kernels": True}),
        json.dumps({**facts, "precisions": [1]}),
        json.dumps({**facts, "integer_layers": 5}),
    ):
        with transaction(bundle, "edit", {}) as change:
            change.path(SIDECAR, "engine fingerprint").write_text(text)
        refused(verify, capsys)
    refused(["report", str(bundle), "-q"], capsys)
    (bundle / SIDECAR).unlink()
    refused(verify, capsys)


# The same on real faces.


@pytest.mark.real
def test_a_real_network_under_the_wrong_preset(
    real_data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """y1 wants raw pixels. Forced into another contract, it never passes and keeps no gallery."""
    root = str(tmp_path / "y1.bundle")
    source = str(real_data / "mobilefacenet_y1.onnx")
    export = ["export", source, "--out", root, "--preset", "insightface", "-q"]
    assert run(export) == 4
    assert run([*export, "--force"]) == 0
    assert run(["build-engine", root, "--fp32", "--backend", "onnxruntime", "-q"]) == 0
    import tarfile

    with tarfile.open(real_data / "faces_dev.tar") as tar:
        by_person: dict[str, list[tarfile.TarInfo]] = {}
        for member in tar:
            if member.isfile() and member.name.startswith("lfw/"):
                by_person.setdefault(member.name.split("/")[1], []).append(member)
        several = [members[:2] for _, members in sorted(by_person.items()) if len(members) > 1]
        tar.extractall(tmp_path / "faces", members=sum(several[:30], []), filter="data")
    faces = str(tmp_path / "faces" / "lfw")
    verify = ["verify", root, "--engine", "fp32", "--faces", faces, "--json", "-q"]
    code, result = answer(verify, capsys)
    assert (code, result["passed"]) == (1, False)
    assert "keep the gallery" not in json.dumps(result)
    assert open_bundle(root).history[0]["summary"]["contract"]["right"] is False
