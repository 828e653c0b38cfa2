"""Structure-aware mutations of files: what is damaged, hostile or of another kind, from a seed."""

import hashlib
import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, helper

Mutate = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**40, -(2**63), 255, 65536)
TEXTS = (
    *("", "\0", "../../../../etc/passwd", "/etc/passwd", "a" * 100_000, "\x1b[2J\x1b]0;x\x07"),
    *("<script>alert(1)</script>", "\u202egnp.x", "\ud800", "nan", "inf", "{{7*7}}", "é" * 300),
    *(
        "$\\frac{x$",
        "%s%n",
        "-1",
        "1e400",
        ".",
        "..",
        "~",
        "bundle.json",
        "🙂",
        "\n\nfr-edge: all hashes match",
    ),
)
OPERATORS = (
    *("Relu", "Conv", "Loop", "If", "Scan", "ConstantOfShape", "Expand", "Resize", "RandomNormal"),
    *("MatMul", "Gemm", "Reshape", "Concat", "Dropout", "BatchNormalization", "QuantizeLinear"),
    *("Tile", "Range", "NonZero", "Identity", "PRelu", "Pad", "NoSuchOperator", "Constant"),
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert, overwrite with lengths: for any format."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        head = rng.randrange(min(len(out), 64) + 1)  # headers are where the meaning is
        at = rng.choice((at, head))
        match rng.randrange(8):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at:]
            case 2:
                del out[at : at + rng.randrange(1, 64)]
            case 3:
                out[at:at] = out[at : at + rng.randrange(1, 4096)]
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 64))
            case 5:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(NUMBERS) % (1 << 8 * size)
                out[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case 6:
                out[at : at + 256] = bytes([rng.choice((0, 255))]) * 256
            case _:
                if out:
                    spot = rng.randrange(len(out))
                    out[spot] ^= 1 << rng.randrange(8)
    return bytes(out)


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """A value of JSON or TOML that is probably not the expected one."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((1e308, -1e308, 1e-320, 0.5)),
        lambda: rng.choice((True, False, None)),
        lambda: [any_value(rng, depth + 1) for _ in range(rng.randrange(4))] if depth < 3 else [],
        lambda: {rng.choice(TEXTS): any_value(rng, depth + 1)} if depth < 3 else {},
    ]
    return rng.choice(kinds)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) of a document."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in keys]
            waiting += [item[key] for key in keys]
    return places


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Other values, keys and depths at random places of the document."""
    try:
        document = json.loads(data)
    except ValueError:
        return mutate_bytes(rng, data)
    choice = rng.randrange(13)
    if choice == 0:
        return mutate_bytes(rng, data)
    if choice == 12 and isinstance(document, dict) and document:  # a key twice
        key, text = rng.choice(list(document)), json.dumps(document)
        return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(any_value(rng))}}}".encode()
    if choice == 1:
        depth = rng.choice((70, 900, 50_000))
        hole = (
            b"[" * depth + b"]" * depth
            if rng.random() < 0.5
            else b'{"a":' * depth + b"1" + b"}" * depth
        )
        text = json.dumps(document)
        numbers = list(re.finditer(r'(?<=: )("[^"]*"|[0-9.]+)', text))
        if not numbers or rng.random() < 0.2:
            return hole
        spot = rng.choice(numbers)
        return text[: spot.start()].encode() + hole + text[spot.end() :].encode()
    if choice == 2:
        text = json.dumps(document)
        numbers = list(re.finditer(r"(?<=[ \[])-?[0-9.]+(?=[,\]}\n])", text))
        if numbers:
            spot = rng.choice(numbers)
            new = rng.choice(
                ("1e400", "-1e400", "NaN", "Infinity", "9" * 400, "1e-400", "-0", "9" * 25)
            )
            return (text[: spot.start()] + new + text[spot.end() :]).encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = _places(document)
        if not places:
            return json.dumps(any_value(rng)).encode()
        container, key = rng.choice(places)
        match rng.randrange(4):
            case 0 if isinstance(container, dict):
                container.pop(key, None)
            case 1 if isinstance(container, dict):
                container[rng.choice(TEXTS)] = container[key]
            case 2 if isinstance(container, list):
                container *= rng.choice((0, 2, 100)) if len(container) < 1000 else 1
            case _:
                container[key] = any_value(rng)
    return json.dumps(document).encode(errors="surrogatepass")


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """For TOML and tables: other words in lines, lines lost, repeated and exchanged."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    lines = data.decode("latin-1").split("\n")
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(lines))
        words = re.split(r"([,=\t: ]+)", lines[at])
        match rng.randrange(6):
            case 0:
                lines.insert(at, rng.choice(lines))
            case 1:
                del lines[at : at + 1]
                lines = lines or [""]
            case 2:
                depth = rng.choice((70, 3000))
                words[-1] = rng.choice(
                    ("[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth)
                )
                lines[at] = "".join(words)
            case 3:
                lines.append("a" + ".a" * rng.choice((70, 3000)) + " = 1")
            case _:
                words[rng.randrange(len(words))] = rng.choice(
                    (
                        *map(str, NUMBERS),
                        *(t for t in TEXTS if t.isascii()),
                        '"',
                        "'",
                        "1e999",
                        ",,,",
                    )
                )
                lines[at] = "".join(words)
    return "\n".join(lines).encode("latin-1", "replace")


def mutate_json_lines(rng: random.Random, data: bytes) -> bytes:
    """For logs: one document of a line is another, or a line is torn."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(rng, lines[at])
    return b"\n".join(lines)


def mutate_zip(rng: random.Random, data: bytes) -> bytes:
    """One member of an archive (.npz, torch's checkpoints), repacked; or the archive's bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        target = rng.choice(pickles if pickles and rng.random() < 0.7 else names)
        for info in old.infolist():
            member = old.read(info)
            kind = info.compress_type
            if info.filename == target:
                match rng.randrange(4):
                    case 0:
                        continue
                    case 1 if target.endswith(".npy"):
                        member = _npy_header(rng, member)
                    case 2 if target.endswith(".pkl"):
                        member = mutate_pickle(rng, member)
                    case 3:
                        kind = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
                    case _:
                        member = mutate_bytes(rng, member)
            new.writestr(info.filename, member, kind)
    return out.getvalue()


def _npy_header(rng: random.Random, data: bytes) -> bytes:
    shape = tuple(rng.choice((*NUMBERS, 112, 3)) for _ in range(rng.randrange(5)))
    kind = rng.choice(
        ("<f4", "|O", "|u1", "<U9", "<f2", "<c8", "|V8", "<M8[s]", "<i8", "x", "<f4,<i4")
    )
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    if rng.random() < 0.2:
        text = b"(" * 5000 + text
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) % 65536) + text + data[128:]


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Opcodes that call, remember, nest and announce lengths, at random places."""
    at = rng.randrange(2, len(data)) if len(data) > 2 else 0
    huge = struct.pack("<Q", rng.choice((2**33, 2**40, 2**62)))
    piece = rng.choice(
        (
            b"r" + struct.pack("<I", rng.choice((2**20, 2**31 - 1))),
            b"cos\nsystem\n(S'true'\ntR",
            b"c__builtin__\nbytearray\n(" + pickle.dumps(2**36, 2)[2:-1] + b"tR",
            b"cbuiltins\nexec\n(S'1'\ntR",
            b"(" * 3000,
            b"]" * 3000 + b"a" * 3000,
            b"\x8e" + huge,
            b"\x95" + huge,
            b"B" + struct.pack("<I", 2**32 - 1),
            b"0" * rng.randrange(1, 9),
            b"ctorch._utils\n_rebuild_sparse_tensor\n(tR",
            b"N",
            rng.randbytes(4),
        )
    )
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    return data[:at] + piece + data[at + rng.randrange(9) :]


def mutate_png(rng: random.Random, data: bytes) -> bytes:
    """Sizes and types in a PNG's header with a valid checksum; else bytes."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.5:
        return mutate_bytes(rng, data)
    sides = (0, 1, 2, 300, 112, 5000, 20_000, 2**31 - 1)
    body = struct.pack(
        ">IIBBBBB",
        rng.choice(sides),
        rng.choice(sides),
        rng.choice((1, 2, 4, 8, 16)),
        rng.choice((0, 2, 3, 4, 6, 7)),
        0,
        0,
        rng.randrange(2),
    )
    return data[:12] + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body)) + data[33:]


def mutate_onnx(rng: random.Random, data: bytes) -> bytes:
    """Other operators, inputs, outputs, attributes, shapes, types and data in the graph."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(rng, data)
    if rng.random() < 0.15 or not model.graph.node:
        return mutate_bytes(rng, data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        node = rng.choice(graph.node)
        tensor = rng.choice(graph.initializer) if graph.initializer else TensorProto()
        match rng.randrange(16):
            case 0:
                node.op_type = rng.choice(OPERATORS)
            case 1:
                del node.output[:]
            case 2:
                del node.input[rng.randrange(len(node.input) + 1) :]
            case 3:
                node.input.append(
                    rng.choice((node.output[0] if node.output else "", "nowhere", ""))
                )
            case 4 if node.attribute:
                item = rng.choice(node.attribute)
                item.i = rng.choice(NUMBERS[:8]) % 2**62
                item.ints[:] = [rng.choice(NUMBERS[:8]) % 2**62 for _ in item.ints]
            case 5 if node.attribute:
                rng.choice(node.attribute).type = rng.choice(AttributeProto.AttributeType.values())
            case 6:
                tensor.dims[:] = [
                    rng.choice((0, 1, -1, 2**31, 2**62, 3)) for _ in range(rng.randrange(5))
                ]
            case 7:
                tensor.data_type = rng.randrange(0, 30)
            case 8:
                tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
            case 9:
                tensor.raw_data = rng.randbytes(len(tensor.raw_data))
            case 10:
                tensor.data_location = TensorProto.EXTERNAL
                place = rng.choice((*TEXTS[:4], "x.onnx", "."))
                tensor.external_data.add(key="location", value=place.replace("\ud800", ""))
            case 11:
                for value in rng.choice((graph.input, graph.output)):
                    dims = value.type.tensor_type.shape.dim
                    for dim in dims:
                        dim.dim_value = rng.choice((0, 1, -1, 3, 112, 2**31, 2**40))
            case 12:
                size = helper.make_tensor(
                    "size", TensorProto.INT64, [4], [1, 1, 2**31, rng.choice((1, 2**20))]
                )
                graph.initializer.append(size)
                graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["much"]))
                node.input.append("much")
            case 13:
                del model.opset_import[:]
                model.opset_import.add(version=rng.choice((0, 1, 7, 17, 22, 2**40)))
            case 14:
                model.metadata_props.add(
                    key=rng.choice(("fr_edge.input", "fr_edge.ranges", "x")),
                    value=json.dumps(any_value(rng)).replace("\\ud800", ""),
                )
            case _:
                graph.node.append(node)
    return model.SerializeToString()


def mutate_tar(rng: random.Random, data: bytes) -> bytes:
    """Another size, kind, name or link in one of the headers, with the right checksum."""
    heads = [p for p in range(0, len(data), 512) if data[p + 257 : p + 262] == b"ustar"]
    if not heads or rng.random() < 0.3:
        return mutate_bytes(rng, data)
    out, at = bytearray(data), rng.choice(heads)
    match rng.randrange(4):
        case 0 | 1:
            size = rng.choice((-1, -512, -1024, -(2**62), 0, 2**33, 2**62))
            out[at + 124 : at + 136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(
                11, "big", signed=True
            )
        case 2:
            out[at + 156] = rng.choice(b"01234567LKSVxg")
            out[at + 157 : at + 257] = b"/etc/passwd".ljust(100, b"\0")
        case _:
            name = rng.choice(TEXTS).encode(errors="replace")[:99]
            out[at : at + 100] = name.ljust(100, b"\0")
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def mutate_pack(rng: random.Random, data: bytes) -> bytes:
    """Other members, names, kinds and sizes of a tar, or other JSON in one of its first members."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        rows = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    headers = {name: tarfile.TarInfo(name) for name, _ in rows}
    spot = rng.randrange(len(rows))
    name, content = rows[spot]
    match rng.randrange(6):
        case 0 | 1:
            spot = rng.randrange(min(3, len(rows)))
            rows[spot] = (rows[spot][0], mutate_json(rng, rows[spot][1]))
        case 2:
            rows[spot] = (rng.choice((*TEXTS, "../x", "x/../y", name.upper())), content)
        case 3:
            rng.choice((lambda: rows.pop(spot), lambda: rows.insert(spot, rows[-1])))()
        case 4:
            headers[name].type = rng.choice(b"01234567LKSVxg").to_bytes(1, "big")
            headers[name].linkname = "/etc/passwd"
        case _:
            headers[name].size = rng.choice((len(content) + 512, 0, 2**33 - 1))
    out = io.BytesIO()
    for name, content in rows:
        header = headers.get(name, tarfile.TarInfo(name[:30].replace("\0", "")))
        header.size, header.mode = header.size or len(content), 0o644
        out.write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogatepass"))
        out.write(content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(1024 + -(out.tell() + 1024) % 10_240)


def agree(bundle: Path, target: Path) -> None:
    """Make a bundle's manifest agree with a changed file, as somebody hostile would."""
    name = target.relative_to(bundle).as_posix()
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    if name in manifest["files"] and target.is_file():
        data = target.read_bytes()
        manifest["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for entry in manifest["files"].values():
            if name in entry.get("of", {}):
                entry["of"][name] = hashlib.sha256(data).hexdigest()
        (bundle / "bundle.json").write_text(json.dumps(manifest))


MUTATORS: dict[str, Mutate] = {
    ".json": mutate_json,
    ".toml": mutate_lines,
    ".csv": mutate_lines,
    ".txt": mutate_lines,
    ".idx": mutate_lines,
    ".cache": mutate_lines,
    ".pub": mutate_lines,
    ".key": mutate_lines,
    ".jsonl": mutate_json_lines,
    ".statistics": mutate_zip,
    ".npz": mutate_zip,
    ".pt": mutate_zip,
    ".bin": mutate_pickle,
    ".png": mutate_png,
    ".onnx": mutate_onnx,
    ".frb": mutate_pack,
    ".tar": mutate_tar,
}


def mutate(rng: random.Random, path: Path) -> str:
    """Change one file in place, or put something else in its place.

    Returns:
        What was done, in a word.
    """
    if rng.random() < 0.04:
        data = path.read_bytes()
        path.unlink()
        match rng.randrange(6):
            case 0:
                os.mkfifo(path)
                return "named pipe"
            case 1:
                path.symlink_to("/dev/zero")
                return "device"
            case 2:
                path.symlink_to(path.name)
                return "link to itself"
            case 3:
                path.mkdir()
                return "folder"
            case 4:
                path.write_bytes(b"")
                return "empty"
            case _:
                path.write_bytes(data * 2)
                return "twice"
    data = path.read_bytes()
    new = MUTATORS.get(path.suffix or path.name, mutate_bytes)(rng, data)
    path.write_bytes(new)
    return "mutated" if new != data else "unchanged"
