"""Verdicts of `verify` on engines that were tampered with and on wrong input contracts.

    python benchmarks/tampered_engines.py FACES NETWORK.onnx PRESET [--size HxW] [--people N]
        [--only tampered|contracts|few]

FACES is a folder per person. People whose names begin with A to L calibrate, the others judge, at
most three photographs each. A tampered bundle is consistent in itself: manifest and fingerprint name
the new bytes. One line per case: the verdict, the lowest cosine, and TAR of reference and engine at
the judged FAR. The last line counts what passed.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from fr_edge.bundle.bundle import transaction
from fr_edge.cli.main import run

Edit = Callable[[ModelProto], None]
DENSE = ("Conv", "Gemm", "MatMul")
WRONG = {
    "mean and std of insightface": ["--preset", "insightface"],
    "raw pixels": ["--preset", "raw"],
    "BGR": ["--channels", "BGR"],
    "ImageNet": ["--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"],
    "pixels 0..1": ["--mean", "0", "--std", "255"],
}


def command(*args: str) -> tuple[int, dict[str, Any], str]:
    """A command's exit code, its JSON document and its messages."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*args, "--json", "-q"])
    text = out.getvalue()
    return code, json.loads(text) if text.strip() else {}, err.getvalue().strip()


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def layers(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in DENSE]


def weight(model: ModelProto, node: onnx.NodeProto) -> TensorProto:
    """The stored weight of a layer, behind its DequantizeLinear where it has one."""
    made = {node.output[0]: node for node in model.graph.node}
    name = node.input[1]
    while name not in tensors(model):
        name = made[name].input[0]
    return tensors(model)[name]


def put(tensor: TensorProto, values: np.ndarray[Any, Any]) -> None:
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(old.dtype), tensor.name))


def negated(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.clip(-values.astype(np.float64), -127, 127) if values.dtype == np.int8 else -values


def bias(model: ModelProto, node: onnx.NodeProto) -> TensorProto | None:
    return tensors(model).get(node.input[2]) if len(node.input) > 2 else None


def zero_a_layer(model: ModelProto) -> None:
    nodes = layers(model)
    tensor = weight(model, nodes[len(nodes) // 2])
    put(tensor, 0 * numpy_helper.to_array(tensor))


def zero_the_last_layer(model: ModelProto) -> None:
    tensor = weight(model, layers(model)[-1])
    put(tensor, 0 * numpy_helper.to_array(tensor))


def flip_the_last_layer(model: ModelProto) -> None:
    node = layers(model)[-1]
    for tensor in filter(None, (weight(model, node), bias(model, node))):
        put(tensor, negated(numpy_helper.to_array(tensor)))


def roll_the_last_layer(model: ModelProto) -> None:
    """Outputs in another order: people are told apart as before, enrolled ones are not."""
    node = layers(model)[-1]
    tensor = weight(model, node)
    values = numpy_helper.to_array(tensor)
    axis = int(values.shape[0] != values.shape[-1] and node.op_type == "MatMul")
    put(tensor, np.roll(values, 1, axis))


def remove_biases(model: ModelProto) -> None:
    for node in layers(model):
        if tensor := bias(model, node):
            put(tensor, 0 * numpy_helper.to_array(tensor))


def remove_a_bias(model: ModelProto) -> None:
    nodes = [node for node in layers(model) if bias(model, node)]
    tensor = bias(model, nodes[len(nodes) // 2])
    assert tensor is not None
    put(tensor, 0 * numpy_helper.to_array(tensor))


def double_a_scale(kind: str) -> Edit:
    """The scale of one DequantizeLinear, of an activation or of a weight, in the middle."""

    def edit(model: ModelProto) -> None:
        weights = tensors(model)
        nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
        of_weights = {layer.input[1] for layer in layers(model)}
        nodes = [n for n in nodes if (n.output[0] in of_weights) == (kind == "weight")]
        node = nodes[len(nodes) // 2]
        values = numpy_helper.to_array(weights[node.input[1]])
        model.graph.initializer.append(numpy_helper.from_array(2 * values, "doubled"))
        node.input[1] = "doubled"

    return edit


def shuffle_a_layer(model: ModelProto) -> None:
    nodes = layers(model)
    tensor = weight(model, nodes[len(nodes) // 2])
    values = numpy_helper.to_array(tensor)
    put(tensor, np.random.default_rng(0).permutation(values.reshape(-1)).reshape(values.shape))


TAMPERED: dict[str, Edit] = {
    "one layer's weights shuffled": shuffle_a_layer,
    "one layer zeroed": zero_a_layer,
    "last layer zeroed": zero_the_last_layer,
    "last layer's sign flipped": flip_the_last_layer,
    "last layer's outputs in another order": roll_the_last_layer,
    "all biases removed": remove_biases,
    "one bias removed": remove_a_bias,
    "scale of one activation doubled": double_a_scale("activation"),
    "scale of one weight doubled": double_a_scale("weight"),
}


def tamper(source: Path, target: Path, file: str, edit: Edit) -> None:
    """A copy of a bundle with another file, and with the INT8 engine built from it."""
    shutil.copytree(source, target)
    model = onnx.load(target / file)
    edit(model)
    with transaction(target, "tamper", {}) as change:
        change.path(file, "tampered").write_bytes(model.SerializeToString())
    if file == "model.onnx":  # the fingerprints and the Q/DQ graph of the original are stale
        command("build-engine", str(target), "--fp32", "--backend", "onnxruntime")
    else:
        code, _, message = command(
            "build-engine", str(target), "--int8", "--backend", "onnxruntime"
        )
        assert code == 0, message


def people(source: Path, target: Path, first: str, last: str, count: int) -> str:
    """At most three photographs of people with two, by the first letter of their names."""
    folders = [
        folder
        for folder in sorted(source.iterdir())
        if first <= folder.name[0].upper() <= last and len(list(folder.iterdir())) > 1
    ]
    step = max(1, len(folders) // count)
    for folder in folders[::step][:count]:
        (target / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:3]:
            shutil.copy(file, target / folder.name)
    return str(target)


def judged(bundle: Path, engine: str, faces: str, *more: str) -> tuple[str, str]:
    """Verdict, and figures with the reasons."""
    code, result, message = command(
        "verify", str(bundle), "--engine", engine, "--faces", faces, *more
    )
    if not result:
        return f"exit {code}", message.splitlines()[0]
    rates = [r for r in result["tar"].values() if r["delta"] is not None]
    rate = rates[-1] if rates else None
    text = f"min cosine {result['cosine']['min']:.3f}"
    if rate:
        text += f", TAR@{rate['far']:g} {rate['reference']:.3f} -> {rate['engine']:.3f}"
    reasons = [reason["reason"] for reason in result["reasons"]]
    return result["verdict"], "; ".join([text, *reasons])


def tampered(home: Path, bundle: Path, faces: str) -> Iterator[tuple[str, str, str]]:
    for name, edit in TAMPERED.items():
        try:
            tamper(bundle, home / "t.bundle", "model.int8.onnx", edit)
            for artifact in ("engine", "graph"):
                case = f"{name}, INT8 {artifact}"
                yield case, *judged(home / "t.bundle", "int8", faces, "--artifact", artifact)
        finally:
            shutil.rmtree(home / "t.bundle", ignore_errors=True)
        if "scale" in name:
            continue
        try:
            tamper(bundle, home / "t.bundle", "model.onnx", edit)
            yield f"{name}, model.onnx", *judged(home / "t.bundle", "fp32", faces)
        finally:
            shutil.rmtree(home / "t.bundle", ignore_errors=True)


def contracts(
    home: Path, args: argparse.Namespace, right: str, faces: str, calibration: str
) -> Iterator[tuple[str, str, str]]:
    for name, options in WRONG.items():
        if options == ["--preset", right]:
            continue
        root = home / "w.bundle"
        if options[0] == "--channels":
            options = ["--preset", right, *options]
        export = ["export", args.network, "--out", str(root), *options, *args.sized]
        door, _, message = command(*export)
        words = "exported" if door == 0 else message.partition(":")[2].strip().splitlines()[0]
        yield f"{name}, export", "not refused" if door == 0 else f"exit {door}", words
        shutil.rmtree(root, ignore_errors=True)
        code, _, message = command(*export, "--faces", faces)
        words = "exported" if code == 0 else message.partition(":")[2].strip().splitlines()[0]
        yield f"{name}, export --faces", "not refused" if code == 0 else f"exit {code}", words
        shutil.rmtree(root, ignore_errors=True)
        assert command(*export, "--force")[0] == 0
        build(root, calibration)
        for engine in ("fp32", "int8"):
            yield f"{name}, {engine.upper()}", *judged(root, engine, faces)
        shutil.rmtree(root)


def build(root: Path, calibration: str) -> None:
    steps = [
        ["calibrate", str(root), "--faces", calibration, "--force"],
        ["build-engine", str(root), "--int8", "--backend", "onnxruntime"],
        ["build-engine", str(root), "--fp32", "--backend", "onnxruntime"],
    ]
    for step in steps:
        code, _, message = command(*step)
        assert code == 0, message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("network")
    parser.add_argument("preset")
    parser.add_argument("--size")
    parser.add_argument("--people", type=int, default=150)
    parser.add_argument("--only", choices=("tampered", "contracts", "few"))
    args = parser.parse_args()
    args.sized = ["--size", args.size] if args.size else []
    passed = 0
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        calibration = people(args.faces, home / "calibration", "A", "L", 100)
        faces = people(args.faces, home / "faces", "M", "Z", args.people)
        bundle = home / "right.bundle"
        export = ["export", args.network, "--out", str(bundle), "--preset", args.preset]
        code, _, message = command(*export, *args.sized)
        assert code == 0, message
        build(bundle, calibration)
        print("untouched, INT8 engine", *judged(bundle, "int8", faces), sep=" | ", flush=True)
        cases: list[Iterator[tuple[str, str, str]]] = []
        if args.only in (None, "few"):
            cases.append(few(home, args.faces, bundle))
        if args.only in (None, "tampered"):
            cases.append(tampered(home, bundle, faces))
        if args.only in (None, "contracts"):
            cases.append(contracts(home, args, args.preset, faces, calibration))
        for case in (case for group in cases for case in group):
            passed += case[1] == "PASSED"
            print(*case, sep=" | ", flush=True)
    print(f"{passed} passed")


def few(home: Path, source: Path, bundle: Path) -> Iterator[tuple[str, str, str]]:
    for count in (2, 5, 9, 12, 20):
        faces = people(source, home / f"few{count}", "M", "Z", count)
        yield f"{count} people, untouched INT8 engine", *judged(bundle, "int8", faces)


if __name__ == "__main__":
    main()
