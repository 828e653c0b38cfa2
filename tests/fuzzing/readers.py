"""The readers of foreign files, each with files to begin from."""

import io
import json
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fr_edge.bundle.bundle import open_bundle, problems, transaction
from fr_edge.bundle.derived import stale_reports
from fr_edge.bundle.golden import read_golden
from fr_edge.bundle.pack import pack, unpack
from fr_edge.bundle.signature import read_signatures
from fr_edge.calibration.table import _digest, read_table
from fr_edge.calibration.trt_cache import check_cache, read_cache
from fr_edge.documents import decode_json
from fr_edge.errors import BundleError, DataError
from fr_edge.faces.archives import read_image
from fr_edge.faces.bin_sets import read_bin
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.ijb import read_ijb
from fr_edge.faces.images import decode_image, decode_photograph, stored_size
from fr_edge.faces.pairs import read_groups, read_pairs
from fr_edge.faces.sources import open_faces
from fr_edge.graph.layers import summarize_model
from fr_edge.graph.load import check_finite, contract_of, image_input
from fr_edge.graph.trained_ranges import read_trained_ranges
from fr_edge.onnx_file import read_onnx
from fr_edge.reading import read_file
from fr_edge.runtime.evaluation.compare import read_report
from fr_edge.runtime.evaluation.embeddings_file import read_embeddings
from fr_edge.runtime.evaluation.limits import BenchmarkLimits, EvaluateLimits, Limits, read_policy
from fr_edge.runtime.fingerprint import check_fingerprint, read_fingerprint
from fr_edge.runtime.recognition.gallery_file import (
    GalleryContent,
    GalleryModel,
    read_gallery,
    write_gallery,
)
from fr_edge.runtime.report.report import list_reports
from fr_edge.runtime.trt.plan_file import check_plan


@dataclass(frozen=True)
class Reader:
    """A reader of foreign files.

    Attributes:
        name: For the table.
        folder: The files to begin from.
        targets: Those of them that are mutated.
        read: Reads a copy of the folder; returns, or raises FrEdgeError.
    """

    name: str
    folder: Path
    targets: tuple[str, ...]
    read: Callable[[Path], object]


def _bundle(root: Path) -> None:
    bundle = open_bundle(root / "b", check="manifest")
    list(problems(bundle))
    stale_reports(bundle)
    list_reports(bundle)
    for name in bundle.files:
        if name.startswith("engines/") and not name.endswith(".json"):
            read_fingerprint(bundle, name)
            check_fingerprint(bundle, name)
    read_signatures(bundle.root)


def _model(root: Path) -> None:
    path = root / "x.onnx"
    model = read_onnx(path)
    summarize_model(path)
    contract_of(model)
    read_trained_ranges(model)
    check_finite(model)
    image_input(model)


def _cache(root: Path) -> None:
    try:
        text = read_file(root / "x.cache", "CACHE_MB").decode(errors="replace")
    except OSError as error:  # in a bundle, the hash was asked for before
        raise DataError(str(error)) from error
    check_cache(read_cache(text, "x.cache"), "10.3.0", "x.cache")


def _images(root: Path) -> None:
    for path in root.iterdir():
        data = read_image(root, path.name)
        for read in (stored_size, decode_photograph, decode_image):
            read(data, path.name)


def _faces(source: Path) -> None:
    faces = open_faces(source)
    for index in range(min(len(faces), 8)):
        faces.read(index)


def _policy(root: Path) -> None:
    for kind in (Limits, EvaluateLimits, BenchmarkLimits):
        read_policy(root / "p.toml", "int8", kind)


def _embeddings(root: Path) -> None:
    read_embeddings(root / "e.npz", ["a", "b"], 8)


def _groups(root: Path) -> None:
    read_groups(root / "groups.csv", ["p0/0.png", "p1/0.png"])


def _table(root: Path) -> None:
    """A table, and where its digest betrays a change, with the digest made right."""
    path = root / "t.json"
    try:
        read_table(path)
    except BundleError as error:
        if "edited" not in error.message:
            raise
        data = decode_json(path.read_bytes(), dict[str, Any], path)
        data.pop("digest", None)
        path.write_text(json.dumps({**data, "digest": _digest(data)}))
        read_table(path)


def _weights(path: Path) -> None:
    from fr_edge.distill.weights import load_network, trained_ranges

    load_network(path, "iresnet-tiny")
    trained_ranges(path)


def _recipe(root: Path) -> None:
    from fr_edge.distill.recipe import read_recipe

    read_recipe(root / "r.toml")


def make_readers(home: Path, bundle: Path, torch: bool = True) -> list[Reader]:
    """All readers, with their files written below `home`.

    Args:
        home: An empty folder.
        bundle: A bundle with a table, an engine and reports.
        torch: Whether checkpoints are read too.
    """
    manifest = open_bundle(bundle, check="manifest")
    shutil.copytree(bundle, home / "bundle" / "b")
    texts = ["bundle.json", *(n for n in manifest.files if n.endswith(".json"))]
    readers = [
        Reader("bundle", home / "bundle", tuple(f"b/{n}" for n in texts), _bundle),
        Reader(
            "golden",
            _copy(home / "golden", bundle),
            ("b/golden.npz",),
            lambda r: read_golden(open_bundle(r / "b", check="manifest")),
        ),
        Reader(
            "table",
            _with(home / "table", "t.json", (bundle / "calibration.json").read_bytes()),
            ("t.json",),
            _table,
        ),
        _onnx(home / "onnx", bundle),
        *_lists(home),
        *_image_sets(home),
        *_small(home, bundle),
        _gallery(home / "gallery"),
        _pack(home / "pack"),
    ]
    reports = [n for n in manifest.files if n.startswith("reports/") and n.endswith(".json")]
    readers.append(
        Reader(
            "report",
            _with(home / "report", "r.json", (bundle / reports[0]).read_bytes()),
            ("r.json",),
            lambda r: read_report(r / "r.json"),
        )
    )
    from .kept_files import make_kept_readers, make_training_readers

    readers += make_kept_readers(home, bundle)
    return readers + (_checkpoints(home) + make_training_readers(home) if torch else [])


def _copy(home: Path, bundle: Path) -> Path:
    shutil.copytree(bundle, home / "b")
    return home


def _with(home: Path, name: str, data: bytes) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / name).write_bytes(data)
    return home


def _onnx(home: Path, bundle: Path) -> Reader:
    return Reader(
        "onnx",
        _with(home, "x.onnx", (bundle / "model.onnx").read_bytes()),
        ("x.onnx",),
        _model,
    )


def png(seed: int, size: tuple[int, int] = (112, 112), kind: str = "PNG") -> bytes:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (7, 7, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, kind)
    return stream.getvalue()


def _lists(home: Path) -> list[Reader]:
    pairs, ijb = home / "pairs", home / "ijb"
    for person in range(3):
        for image in range(2):
            _with(pairs / f"p{person}", f"{image}.png", png(person))
            _with(pairs / f"q{person}", f"q{person}_{image + 1:04}.png", png(person))
    _with(
        pairs,
        "pairs.csv",
        b"fold,path1,path2,same\n0,p0/0.png,p0/1.png,1\n0,p0/0.png,p1/1.png,0\n"
        b"1,p1/0.png,p1/1.png,1\n1,p1/0.png,p2/1.png,0\n",
    )
    _with(pairs, "lfw.txt", b"2\t1\nq0\t1\t2\nq0\t1\tq1\t2\nq1\t1\t2\nq1\t1\tq2\t2\n")
    _with(pairs, "plain.txt", b"p0/0.jpg p0/1.jpg 1\np0/0.jpg p1/1.jpg 0\np1/0.jpg p2/1.jpg 0\n")
    _with(pairs, "groups.csv", b"path,group\np0/0.png,old\np1/0.png,new\n")
    for number in range(4):
        _with(ijb / "loose_crop", f"{number}.jpg", png(number, kind="JPEG"))
    _with(ijb / "meta", "x_face_tid_mid.txt", b"0.jpg 1 1\n1.jpg 1 2\n2.jpg 2 3\n3.jpg 3 4\n")
    points = "38.3 51.7 73.5 51.5 56 71.7 41.5 92.4 70.7 92.2 0.9"
    _with(
        ijb / "meta",
        "x_name_5pts_score.txt",
        "".join(f"{n}.jpg {points}\n" for n in range(4)).encode(),
    )
    _with(ijb / "meta", "x_template_pair_label.txt", b"1 2 0\n1 3 1\n")
    lists = tuple(
        f"meta/x_{n}.txt" for n in ("face_tid_mid", "name_5pts_score", "template_pair_label")
    )

    def read_all(root: Path) -> None:
        images = read_ijb(root).faces
        for index in range(len(images)):
            images.read(index)

    return [
        Reader("pairs", pairs, ("pairs.csv",), lambda r: read_pairs(r / "pairs.csv")),
        Reader("LFW pairs", pairs, ("lfw.txt",), lambda r: read_pairs(r / "lfw.txt")),
        Reader("photographs' pairs", pairs, ("plain.txt",), lambda r: read_pairs(r / "plain.txt")),
        Reader("groups", pairs, ("groups.csv",), _groups),
        Reader("IJB", ijb, (*lists, "loose_crop/0.jpg"), read_all),
    ]


def _image_sets(home: Path) -> list[Reader]:
    images = home / "images"
    for kind in ("png", "jpeg", "bmp", "webp"):
        _with(images, f"x.{kind}", png(1, kind=kind.upper()))
    tars, records, bins = home / "tars", home / "records", home / "bins"
    tars.mkdir(parents=True)
    with tarfile.open(tars / "x.tar", "w") as archive:
        for person in range(3):
            data = png(person)
            info = tarfile.TarInfo(f"p{person}/0.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    body, index = b"", []
    for key in range(3):
        payload = struct.pack("<IfQQ", 0, float(key), key, 0) + png(key)
        index.append(f"{key}\t{len(body)}\n")
        body += struct.pack("<II", 0xCED7230A, len(payload)) + payload + b"\0" * (-len(payload) % 4)
    _with(records, "train.rec", body)
    _with(records, "train.idx", "".join(index).encode())
    encoded = [png(n) for n in range(20)]
    _with(bins, "x.bin", pickle.dumps((encoded, [True, False] * 5), 4))
    return [
        Reader("images", images, ("x.png", "x.jpeg", "x.bmp", "x.webp"), _images),
        Reader("tar", tars, ("x.tar",), lambda r: _faces(r / "x.tar")),
        Reader("RecordIO", records, ("train.rec", "train.idx"), _faces),
        Reader("bin set", bins, ("x.bin",), lambda r: read_bin(r / "x.bin")),
    ]


def _small(home: Path, bundle: Path) -> list[Reader]:
    from fr_edge.bundle.keys import read_public_key

    embeddings = io.BytesIO()
    rows = np.ones((2, 8), np.float32)
    np.savez_compressed(embeddings, embeddings=rows, keys=np.array(["a", "b"]), labels=np.arange(2))
    policy = (
        b"min_cosine = 0.99\nfar = 1e-4\n[int8]\nmax_tar_drop = 0.01\n[benchmark]\nmax_p99_ms = 5\n"
    )
    cache = b"TRT-100300-EntropyCalibration2\nface: 3c010a14\nconv: 3f000000\n"
    plan = b"ftrt" + b"\0" * 20 + bytes([10, 3, 0, 26]) + b"\0" * 100
    sidecar = (
        b'{"backend": "tensorrt", "precision": "int8", "sha256": "", "source_sha256": "0",'
        b' "layers": {"int8": 1}, "size": 128, "tensorrt": "10.3.0", "gpu": "Orin"}'
    )
    _with(home / "plan", "x.plan.json", sidecar)
    key = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
    return [
        Reader(
            "embeddings",
            _with(home / "npz", "e.npz", embeddings.getvalue()),
            ("e.npz",),
            _embeddings,
        ),
        Reader("policy", _with(home / "policy", "p.toml", policy), ("p.toml",), _policy),
        Reader("cache", _with(home / "cache", "x.cache", cache), ("x.cache",), _cache),
        Reader(
            "plan",
            _with(home / "plan", "x.plan", plan),
            ("x.plan", "x.plan.json"),
            lambda r: check_plan(r / "x.plan"),
        ),
        Reader(
            "public key",
            _with(home / "key", "x.pub", key),
            ("x.pub",),
            lambda r: read_public_key(r / "x.pub"),
        ),
    ]


def _gallery(home: Path) -> Reader:
    model = GalleryModel({"model.onnx": "ab" * 32}, InputSpec(), "int8", "cd" * 32, 8)
    rows = np.eye(3, 8, dtype=np.float32)
    write_gallery(
        home / "g.npz", GalleryContent(rows, ["a", "b", "c"], np.zeros(3, np.uint8), (model,))
    )
    return Reader("gallery", home, ("g.npz",), lambda r: read_gallery(r / "g.npz"))


def _pack(home: Path) -> Reader:
    """A small unsigned pack; what is accepted is whole."""
    home.mkdir()
    with transaction(home / "b", "export", {}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        for name in ("model.onnx", "engines/tensorrt-int8.plan", "reports/verify-int8.json"):
            change.path(name, "test").write_bytes(b"weights" * 99)
    pack(home / "b", home / "x.frb")
    shutil.rmtree(home / "b")

    def read(root: Path) -> None:
        unpack(root / "x.frb", root / "out", allow_unsigned=True)
        assert list(problems(open_bundle(root / "out", check="manifest"))) == []

    return Reader("pack", home, ("x.frb",), read)


def _checkpoints(home: Path) -> list[Reader]:
    import torch
    from safetensors.torch import save_file

    from fr_edge.distill.networks import build_network
    from fr_edge.distill.weights import save_network

    torch.manual_seed(0)
    state = build_network("iresnet-tiny", 16).state_dict()
    recipe = Path(__file__).parents[2] / "distill" / "recipes" / "tiny.toml"
    save_network(_with(home / "torch", "x.pt", b"") / "x.pt", state, "iresnet-tiny", 16)
    save_file(state, _with(home / "safetensors", "x.safetensors", b"") / "x.safetensors")
    torch.save(state, home / "torch" / "y.pth", _use_new_zipfile_serialization=False)
    return [
        Reader("checkpoint", home / "torch", ("x.pt",), lambda r: _weights(r / "x.pt")),
        Reader("old checkpoint", home / "torch", ("y.pth",), lambda r: _weights(r / "y.pth")),
        Reader(
            "safetensors",
            home / "safetensors",
            ("x.safetensors",),
            lambda r: _weights(r / "x.safetensors"),
        ),
        Reader(
            "recipe", _with(home / "recipe", "r.toml", recipe.read_bytes()), ("r.toml",), _recipe
        ),
    ]
