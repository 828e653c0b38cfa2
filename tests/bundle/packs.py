"""Bundles, keys and packs for tests, and packs that `fr-edge pack` would not write."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fr_edge.bundle.bundle import transaction
from fr_edge.bundle.keys import PublicKey, SigningKey, make_key_pair, read_signing_key
from fr_edge.faces.contract import InputSpec

FILES = {
    "model.onnx": b"weights" * 300,
    "engines/tensorrt-int8.plan": b"\x00plan\xff" * 99,
    "engines/tensorrt.timing": b"cache",
    "reports/verify-int8.json": b"{}",
    "empty": b"",
}

Member = tuple[tarfile.TarInfo, bytes]


def write_bundle(root: Path, files: dict[str, bytes] | None = None) -> Path:
    """A bundle of arbitrary bytes, whose history has fixed times and versions."""
    with transaction(root, "export", {"seed": 1}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        for name, data in (FILES if files is None else files).items():
            change.path(name, "test").write_bytes(data)
    return root


def make_key(folder: Path, name: str = "maker") -> SigningKey:
    make_key_pair(folder / f"{name}.key", folder / f"{name}.pub")
    return read_signing_key(folder / f"{name}.key")


def keys_of(*keys: SigningKey) -> tuple[PublicKey, ...]:
    return tuple(key.public for key in keys)


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def members(pack: Path) -> list[Member]:
    """The members of a pack, by Python's own reader."""
    with tarfile.open(pack, "r:") as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def write_tar(path: Path, rows: Sequence[Member], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of the given members, by Python's own writer."""
    with tarfile.open(path, "w:", format=format) as archive:
        for info, data in rows:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def edit(pack: Path, out: Path, change: Callable[[list[Member]], None], **settings: int) -> Path:
    """The pack after `change` of its members."""
    rows = members(pack)
    change(rows)
    return write_tar(out, rows, **settings)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), 0o644
    return info, data
