"""Foreign bytes enter through `reading` alone, and what it refuses is refused."""

import ast
import os
import re
import socket
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fr_edge.arrays import map_npy, read_npz
from fr_edge.documents import decode_json, read_json, read_toml
from fr_edge.errors import DataError, FacesError, UsageError
from fr_edge.faces.bin_sets import read_bin
from fr_edge.faces.images import decode_image, decode_photograph
from fr_edge.faces.sources import open_faces
from fr_edge.files import sha256
from fr_edge.onnx_file import read_onnx
from fr_edge.reading import (
    LIMITS,
    check_limit,
    limit_variable,
    open_file,
    raised_limits,
    read_file,
    read_limit,
)

from .test_architecture import ROOT, package_files

# Calls that read a file, or bytes by a format that can hold anything.
READERS = {
    "open", "os.open", "io.open", "read_bytes", "read_text", "np.load", "np.fromfile", "np.memmap",
    "open_memmap", "np.loadtxt", "np.genfromtxt", "onnx.load", "onnx.load_model",
    "onnx.load_model_from_string", "onnx.load_external_data_for_model", "ParseFromString",
    "torch.load", "load_file", "json.load", "json.loads", "msgspec.json.decode", "tomllib.load",
    "tomllib.loads", "Image.open", "tarfile.open", "zipfile.ZipFile", "pickle.load",
    "pickle.loads", "pickle.Unpickler", "onnxruntime.InferenceSession",
}  # fmt: skip

SHORT = {name.rsplit(".", 1)[-1] for name in READERS}

# Where such a call is right, and why.
ALLOWED = {
    ("arrays.py", "open"): "a member of a zip archive",
    ("arrays.py", "np.memmap"): "of a stream from open_file",
    ("arrays.py", "zipfile.ZipFile"): "of a stream from open_file",
    ("bundle/bundle.py", "os.open"): "the folder, for its lock",
    ("bundle/pack.py", "read_text"): "of a pack, through open_file",
    ("bundle/draft_folder.py", "os.open"): "a folder that was written, to sync it",
    ("distill/teacher_cache.py", "open_memmap"): "the cache, whose note was read and compared",
    ("distill/teacher_cache.py", "open"): "the cache that was made here, to reserve its space",
    ("distill/train_step.py", "read_text"): "/proc",
    ("distill/weights.py", "load_file"): "a file that open_file accepted",
    ("distill/weights.py", "torch.load"): "of a stream from open_file, weights_only",
    ("distill/weights.py", "zipfile.ZipFile"): "of a stream from open_file",
    ("documents.py", "msgspec.json.decode"): "the one reader of JSON",
    ("documents.py", "tomllib.loads"): "the one reader of TOML",
    ("export/simplify.py", "onnx.load"): "what onnxsim wrote, in a folder of this process",
    ("distill/foreign/exported_program.py", "zipfile.ZipFile"): "on a stream of open_file",
    ("distill/foreign/foreign_network.py", "zipfile.ZipFile"): "on a stream of open_file",
    ("distill/foreign/torchscript.py", "zipfile.ZipFile"): "on bytes of open_file",
    ("export/torch_network.py", "onnx.load"): "what torch wrote, in a folder of this process",
    ("faces/face_numbers.py", "os.open"): "the folder, for its lock",
    ("faces/images.py", "Image.open"): "the one decoder of images, of bytes within the limits",
    ("files.py", "os.open"): "a file or folder that was written, to sync it",
    ("inference.py", "onnxruntime.InferenceSession"): "the one maker of sessions",
    ("onnx_file.py", "onnx.load_model_from_string"): "the one parser of ONNX",
    ("reading.py", "os.open"): "the reader layer itself",
    ("runtime/acceptance/disclosure.py", "read_text"): "/etc, /proc and /sys, through sensors",
    ("faces/embedding_log.py", "os.open"): "this user's own log, to go on with it",
    ("runtime/packages/deepstream_config.py", "read_text"): "fr-edge's own templates",
    ("runtime/packages/package_draft.py", "read_bytes"): "fr-edge's own templates",
    ("runtime/packages/triton_repository.py", "read_bytes"): "fr-edge's own templates",
    ("runtime/packages/triton_repository.py", "read_text"): "fr-edge's own templates",
    ("runtime/machine/device.py", "read_text"): "/proc and /sys",
    ("runtime/machine/doctor.py", "read_text"): "/proc and /sys, through sensors",
    ("runtime/machine/sensors.py", "read_text"): "/proc and /sys",
    ("runtime/machine/tegrastats.py", "read_text"): "/etc/nvpmodel.conf, through sensors",
    ("runtime/benchmark/timing.py", "read_text"): "/proc",
    ("runtime/evaluation/rank_exchange.py", "read_text"): "/proc",
    ("runtime/onnxruntime_session.py", "read_text"): "/proc",
}


def reading_calls(text: str) -> set[str]:
    """The calls of `READERS` in a file; opening for writing alone is none."""
    calls: set[str] = set()
    if not re.search(rf"\b({'|'.join(SHORT)})\b", text):  # parsing is what takes time
        return calls
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        short = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if short not in SHORT:
            continue
        name = ast.unparse(node.func)
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if name == "os.open" and re.search(r"O_WRONLY|O_CREAT", ast.unparse(node)):
            continue
        if short == "open" and any(re.fullmatch(r"[wxa]b?", str(mode)) for mode in modes):
            continue
        if name in READERS:
            calls.add(name)
        elif short in READERS:
            calls.add(short)
    return calls


def test_foreign_files_are_opened_by_the_reader_layer_alone() -> None:
    found = {
        (file.relative_to(ROOT).as_posix(), call)
        for file in package_files()
        if "templates" not in file.parts  # programs for others' machines, which fr-edge never runs
        for call in reading_calls(file.read_text())
    }
    assert found - set(ALLOWED) == set()
    assert set(ALLOWED) - found == set(), "permissions that nothing needs"


def test_the_check_sees_readers() -> None:
    text = (
        "import onnx\nwith p.open('rb') as s: pass\nonnx.load(p)\np.open('wb')\nQ(p).read_bytes()"
    )
    assert reading_calls(text) == {"open", "onnx.load", "read_bytes"}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, match in (("pipe", "a named pipe"), ("zero", "a device")):
        with pytest.raises(DataError, match=match):
            open_file(tmp_path / name)
        with pytest.raises(DataError, match=match):
            sha256(tmp_path / name)
        with pytest.raises(DataError, match=match):
            read_json(tmp_path / name, dict)
        with pytest.raises(DataError, match=match):
            read_toml(tmp_path / name)
    with pytest.raises(DataError, match="a folder"):
        open_file(tmp_path)
    with pytest.raises(OSError, match="No such device|symbolic links"):
        open_file(tmp_path / "loop")
    with pytest.raises(OSError, match="No such device"):
        open_file(tmp_path / "socket")
    with pytest.raises(DataError, match="cannot be the name of a file"):
        open_file(Path("a\0b"))
    server.close()


def test_a_pipe_among_images_is_refused_when_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    (tmp_path / "z.png").symlink_to("/dev/zero")
    faces = open_faces(tmp_path)
    with pytest.raises(FacesError, match="a named pipe"):
        faces.read(0)
    with pytest.raises(FacesError, match="a device"):
        faces.read(1)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(b"#" * 1025)
    assert len(read_file(file, "TOML_KB")) == 1025
    monkeypatch.setenv("FR_EDGE_MAX_TOML_KB", "1")
    with pytest.raises(DataError, match="larger than 1 KB") as caught:
        read_toml(file)
    assert "FR_EDGE_MAX_TOML_KB=2" in caught.value.hint
    monkeypatch.setenv("FR_EDGE_MAX_TOML_KB", "2")
    assert read_toml(file) == {}
    for text in ("0", "-1", "1e3", "٣", "many", "9" * 40):
        monkeypatch.setenv("FR_EDGE_MAX_TOML_KB", text)
        with pytest.raises(UsageError, match="FR_EDGE_MAX_TOML_KB is"):
            read_limit("TOML_KB")


def test_reading_takes_the_memory_of_the_file_and_not_of_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * 5000)
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "x", "ENGINE_MB") == b"a" * 5000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert b"\n" in read_file(Path("/proc/self/status"), "JSON_MB")  # its size is said to be 0


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_names_the_variable_that_raises_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, variable = LIMITS[name], limit_variable(name)
    assert read_limit(name) == limit.value * limit.scale
    check_limit(name, read_limit(name), "it")
    with pytest.raises(DataError, match=f"larger than {limit.value} {limit.unit}") as caught:
        check_limit(name, read_limit(name) + 1, "it")
    option, wanted = caught.value.hint.removeprefix("if you trust it, add ").split(", or set ")
    assert wanted == f"{variable}={limit.value + 1}"
    assert raised_limits([option.removeprefix("--raise-limit ")]) == dict([wanted.split("=")])
    monkeypatch.setenv(variable, str(limit.value + 1))
    check_limit(name, limit.value * limit.scale + 1, "it")


def _images(path: Path, size: tuple[int, int]) -> bytes:
    Image.new("RGB", size).save(path)
    return path.read_bytes()


def _network(path: Path) -> Path:
    weight = TensorProto(name="w", data_type=1, dims=[3 << 18])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="side")
    other = TensorProto(name="v", data_type=1, dims=[3 << 18], data_location=1)
    other.external_data.add(key="location", value="side")
    (path.parent / "side").write_bytes(b"\0" * (3 << 20))
    face = helper.make_tensor_value_info("face", 1, [1])
    nodes = [helper.make_node("Relu", ["face"], [f"a{i}"]) for i in range(5)]
    graph = helper.make_graph(nodes, "g", [face], [helper.make_tensor_value_info("a0", 1, [1])])
    graph.initializer.extend([weight, other])
    onnx.save(helper.make_model(graph), path)
    return path


OWN_COUNTS = {  # limits that are counted otherwise than by a file's size -> what meets them when 1
    "DEPTH": lambda home: decode_json(b"[" * 9 + b"]" * 9, object, "x"),
    "ARRAYS_MB": lambda home: read_npz(home / "x.npz", ["a", "b"]),
    "FACE_SIDE": lambda home: decode_image(_images(home / "x.png", (120, 112)), "x"),
    "PHOTO_MPIXELS": lambda home: decode_photograph(_images(home / "x.png", (1500, 1200)), "x"),
    "SET_MB": lambda home: read_bin(home / "x.bin"),
    "SET_STEPS": lambda home: read_bin(home / "x.bin"),
    "SIDE_FILES_MB": lambda home: read_onnx(_network(home / "x.onnx"), side_files=True),
    "NODES": lambda home: read_onnx(_network(home / "x.onnx"), side_files=True),
}


@pytest.mark.parametrize("name", OWN_COUNTS)
def test_what_the_message_says_is_enough(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the counting could stop at the first that is too much."""
    np.savez(tmp_path / "x.npz", a=np.zeros(3 << 18, np.float32), b=np.zeros(3 << 18, np.float32))
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\0"  # encoded 6 times
    encode = b"c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR"
    images = b"](" + text + b"0" + encode * 6 + b"e"
    (tmp_path / "x.bin").write_bytes(b"\x80\x02" + images + b"](" + b"\x88" * 3 + b"e\x86.")
    monkeypatch.setenv(limit_variable(name), "2" if name == "SET_MB" else "1")
    with pytest.raises(DataError, match="larger than") as caught:
        OWN_COUNTS[name](tmp_path)
    option = re.search(r"--raise-limit (\S+=\d+)", caught.value.hint)
    assert option is not None
    for variable, value in raised_limits([option[1]]).items():
        monkeypatch.setenv(variable, value)
    OWN_COUNTS[name](tmp_path)


def test_a_photograph_beyond_pillows_own_bound_is_a_matter_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = _images(tmp_path / "x.png", (112, 112))
    assert decode_photograph(data, "x").shape == decode_image(data, "x").shape == (112, 112, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    "text", ["json-mb", "json-mb=0", "json_mb=2", "x=2", "=2", "depth=1e3", ""]
)
def test_a_limit_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--raise-limit is"):
        raised_limits(["depth=99", text])


def test_documents_are_as_deep_as_allowed() -> None:
    assert decode_json(b"[" * 64 + b"]" * 64, object, "x")
    for depth in (65, 900, 200_000):
        for text in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            with pytest.raises(DataError, match="^x "):
                decode_json(text, object, "x")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 2000 + "]" * 2000,
        "a = " + "{a=" * 2000 + "1" + "}" * 2000,
        "a" + ".a" * 100_000 + " = 1",
        "[a" + ".a" * 100_000 + "]",
        "a = " + "9" * 5000,
    ],
)
def test_toml_is_as_deep_as_allowed(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(DataError):
        read_toml(tmp_path / "x.toml")


@pytest.mark.parametrize("number", ["1e400", "-1e999", "9" * 19, "9" * 400, "9" * 5000])
def test_numbers_are_as_large_as_can_be_computed_with(number: str) -> None:
    with pytest.raises(DataError):
        decode_json(f'{{"a": [{number}]}}'.encode(), dict, "x")
    assert decode_json(b'{"a": ["9999999999999999999999", 9223372036854775807]}', dict, "x")


HEADER = b"\x93NUMPY\x01\x00"


def npy(shape: str, kind: str, data: bytes = b"\0" * 8) -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return HEADER + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "member",
    [
        npy("(1099511627776,)", "'<f4'"),  # 4 TB announced, 8 bytes there
        npy("(4294967296, 4294967296)", "'<f4'"),
        npy("(-1,)", "'<f8'"),
        npy("(1,)", "'|O'"),  # a pickle
        npy("(1,)", "'<c8'"),
        npy("(1,)", "[('a', '<f8')]"),
        npy("(1," + "(" * 200 + ")" * 200 + ")", "'<f8'"),
        npy("(3,)", "'<f8'"),
        HEADER,
        b"",
    ],
)
def test_arrays_are_what_their_header_announces(member: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", member)
        archive.writestr("b.npy", npy("(1,)", "'<f8'"))
    assert read_npz(tmp_path / "x.npz", ["b", "c"]) == {"b": 0.0}
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path / "x.npz", ["a"])
    (tmp_path / "x.npy").write_bytes(member)
    with pytest.raises(DataError, match="cannot be read"):
        map_npy(tmp_path / "x.npy")


def test_arrays_are_limited_by_what_they_unpack_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 19, np.float32))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    assert len(read_npz(tmp_path / "x.npz", ["a"])["a"]) == 1 << 19
    monkeypatch.setenv("FR_EDGE_MAX_ARRAYS_MB", "1")
    with pytest.raises(DataError, match="larger than 1 MB, the limit of the arrays"):
        read_npz(tmp_path / "x.npz", ["a"])


def test_the_security_page_shows_the_limits() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"(?m)^\| `(FR_EDGE_MAX_\w+)` \| (\d+) ([^|]+) \| ([^|]+) \|$", page)
    assert rows == [
        (limit_variable(name), str(limit.value), limit.unit, limit.covers)
        for name, limit in LIMITS.items()
    ]
