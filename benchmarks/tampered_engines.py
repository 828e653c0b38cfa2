"""Verdicts of `verify` on engines that were tampered with and on wrong input contracts.

    python benchmarks/tampered_engines.py FACES NETWORK.onnx PRESET [--size HxW] [--people N]
        [--only tampered|contracts|few] [--home FOLDER]

FACES is a folder per person. People whose names begin with A to L calibrate, the others judge, at
most three photographs each. A tampered bundle is consistent in itself: manifest and fingerprint name
the new bytes. One line per case: the verdict on the golden faces, or on people where those pass, with
the lowest cosine, TAR of reference and engine at the judged FAR, the reasons and the findings. The last line
counts what passed. `--home` keeps people and the right bundle for the next call.
"""

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from engine_edits import ENDS, OUTPUTS, SCALES, WEIGHTS, Edit

from fr_edge.bundle.bundle import transaction
from fr_edge.cli.main import run
from fr_edge.runtime.session import open_session

ENGINE = "engines/onnxruntime-int8.onnx"
SHUFFLED = WEIGHTS["one layer's weights shuffled"]
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


def edited(path: Path, edit: Edit) -> bytes:
    model = onnx.load(path)
    edit(model)
    return bytes(model.SerializeToString())


def seal(root: Path, engine: bytes) -> None:
    """Other bytes in the INT8 engine's place; manifest and fingerprint name them."""
    sidecar = f"{ENGINE}.json"
    facts = json.loads((root / sidecar).read_text())
    facts["sha256"] = hashlib.sha256(engine).hexdigest()
    with transaction(root, "tamper", {}) as change:
        change.path(ENGINE, "int8 engine").write_bytes(engine)
        change.path(sidecar, "engine fingerprint").write_text(json.dumps(facts))


def replace_file(root: Path, file: str, data: bytes, *build: str) -> None:
    """Another file in a bundle, and engines built again."""
    with transaction(root, "tamper", {}) as change:
        change.path(file, "tampered").write_bytes(data)
    for precision in build:
        args = ["build-engine", str(root), f"--{precision}", "--backend", "onnxruntime"]
        code, _, message = command(*args)
        assert code == 0, message


def edit_golden(root: Path, *, engine: str | None) -> bytes:
    """Golden embeddings of an engine, or 32 times the first golden face."""
    with np.load(root / "golden.npz") as file:
        arrays = dict(file)
    if engine:
        with open_session(root, engine, "onnxruntime") as session:
            arrays["embeddings"] = session.embed(arrays["faces"])
    else:
        for name in ("faces", "embeddings"):
            arrays[name] = np.repeat(arrays[name][:1], len(arrays[name]), 0)
    arrays.pop("embeddings_fp64", None)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def people(source: Path, target: Path, first: str, last: str, count: int) -> str:
    """At most three photographs of people with two, by the first letter of their names."""
    folders = [
        folder
        for folder in sorted(source.iterdir())
        if first <= folder.name[0].upper() <= last and len(list(folder.iterdir())) > 1
    ]
    if target.is_dir():
        return str(target)
    step = max(1, len(folders) // count)
    for folder in folders[::step][:count]:
        (target / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:3]:
            shutil.copy(file, target / folder.name)
    return str(target)


def judged(bundle: Path, engine: str, faces: str, *more: str) -> tuple[str, str]:
    """Verdict, and figures with the reasons: of the golden faces, and of people where those pass."""
    verify = ["verify", str(bundle), "--engine", engine, *more]
    code, result, message = command(*verify)
    if result.get("passed"):
        code, result, message = command(*verify, "--faces", faces)
    if "verdict" not in result:
        return f"exit {code}", str(result.get("error", message))
    on = f"{result['faces']['identities']} people" if result["faces"] else "golden faces"
    text = f"{on}, min cosine {result['cosine']['min']:.3f}"
    rates = [r for r in result["tar"].values() if r["delta"] is not None]
    if rates:
        rate = rates[-1]
        text += f", TAR@{rate['far']:g} {rate['reference']:.3f} -> {rate['engine']:.3f}"
    reasons = [reason["reason"] for reason in result["reasons"]]
    reasons += [f"finding: {finding}" for finding in result["findings"]]
    return result["verdict"], "; ".join([text, *reasons])


@contextlib.contextmanager
def copy_of(bundle: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "t.bundle"
        shutil.copytree(bundle, root)
        yield root


def tampered(bundle: Path, faces: str) -> Iterator[tuple[str, str, str]]:
    for name, edit in (WEIGHTS | SCALES).items():
        with copy_of(bundle) as root:
            try:
                replace_file(
                    root, "model.int8.onnx", edited(root / "model.int8.onnx", edit), "int8"
                )
            except IndexError:  # the network has no such layer
                continue
            yield f"{name}, INT8 engine", *judged(root, "int8", faces)
            yield f"{name}, INT8 graph", *judged(root, "int8", faces, "--artifact", "graph")
        if edit not in SCALES.values():
            with copy_of(bundle) as root:
                # The fingerprints and the Q/DQ graph of the original are stale then.
                replace_file(root, "model.onnx", edited(root / "model.onnx", edit), "fp32")
                yield f"{name}, model.onnx", *judged(root, "fp32", faces)
    for name, edit in (OUTPUTS | ENDS).items():
        with copy_of(bundle) as root:
            try:
                seal(root, edited(root / ENGINE, edit))
            except IndexError:  # the network has no such step
                continue
            yield f"{name}, INT8 engine", *judged(root, "int8", faces)
    with copy_of(bundle) as root:
        replace_file(root, "model.int8.onnx", edited(root / "model.int8.onnx", SHUFFLED), "int8")
        replace_file(root, "golden.npz", edit_golden(root, engine="int8"))
        yield "golden embeddings of a tampered engine", *judged(root, "int8", faces)
    with copy_of(bundle) as root:
        replace_file(root, "golden.npz", edit_golden(root, engine=None))
        seal(root, edited(root / ENGINE, OUTPUTS["the first face's embedding for all"]))
        yield "golden faces all alike, one embedding for all", *judged(root, "int8", faces)


def forget_contract(root: Path) -> None:
    """As if export had not looked at the contract: what does `verify` see by itself?"""
    manifest = json.loads((root / "bundle.json").read_text())
    for entry in manifest["history"]:
        entry.get("summary", {}).pop("contract", None)
    (root / "bundle.json").write_text(json.dumps(manifest))


def contracts(
    home: Path, args: argparse.Namespace, right: str, faces: str
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
        forget_contract(root)
        yield f"{name}, verify", *judged(root, "fp32", faces, "--artifact", "graph")
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
    parser.add_argument("--home", type=Path)
    args = parser.parse_args()
    args.sized = ["--size", args.size] if args.size else []
    passed = 0
    with tempfile.TemporaryDirectory() as temporary:
        home = args.home or Path(temporary)
        calibration = people(args.faces, home / "calibration", "A", "L", 100)
        faces = people(args.faces, home / f"faces{args.people}", "M", "Z", args.people)
        bundle = home / "right.bundle"
        if not bundle.is_dir():
            export = ["export", args.network, "--out", str(bundle), "--preset", args.preset]
            code, _, message = command(*export, *args.sized)
            assert code == 0, message
            build(bundle, calibration)
        print("untouched, INT8 engine", *judged(bundle, "int8", faces), sep=" | ", flush=True)
        cases: list[Iterator[tuple[str, str, str]]] = []
        if args.only in (None, "few"):
            cases.append(few(home, args.faces, bundle))
        if args.only in (None, "tampered"):
            cases.append(tampered(bundle, faces))
        if args.only in (None, "contracts"):
            cases.append(contracts(home, args, args.preset, faces))
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
