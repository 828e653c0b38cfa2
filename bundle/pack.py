"""Write a bundle as one file, reproducibly: the same content gives the same bytes; see `pack_format`."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..documents import encode_json
from ..errors import BundleError, MachineError, UsageError
from ..files import sync
from .bundle import open_bundle
from .keys import SigningKey
from .manifest import MANIFEST, SCHEMA, Bundle, linked_part
from .pack_format import Write, check_names, end_of_pack, filling, member_header, open_regular
from .sbom import SBOM, bundle_sbom
from .signature import (
    SIGNATURES,
    Signature,
    encode_signatures,
    merge_signature,
    read_signatures,
    read_statement,
    sign_statement,
    state_files,
)

_PIECE = 1 << 20


@dataclass(frozen=True)
class PackResult:
    """A pack that was written.

    Attributes:
        file: The pack.
        sha256: Of the pack.
        size: Bytes.
        files: Files of the bundle in it.
        left_out: Path of a file that was left out -> why.
        signed_by: Fingerprints of the keys whose signatures cover all of it.
    """

    file: str
    sha256: str
    size: int
    files: int
    left_out: Mapping[str, str]
    signed_by: tuple[str, ...]


def pack(
    bundle: str | Path, out: str | Path, key: SigningKey | None = None, *, reports: bool = True
) -> PackResult:
    """Write a bundle as one file.

    Signatures that the bundle has are kept where they still speak of its files.

    Args:
        bundle: The bundle's folder.
        out: The file to write.
        key: Signs the pack.
        reports: Whether its reports travel too.

    Raises:
        UsageError: `out` is a folder, or lies in the bundle.
        BundleError: The bundle is damaged, or holds names that a pack cannot have.
        MachineError: The file cannot be written.
    """
    opened, out = open_bundle(bundle, check="manifest"), Path(out)
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is not a file", "name the file to write: --out NAME.frb")
    if opened.root.resolve() in out.resolve().parents:
        raise UsageError(f"{out} lies in the bundle", "write the pack elsewhere")
    left_out = {} if reports else {n: "a report" for n in opened.files if _is_evidence(n)}
    packed = _without(opened, left_out)
    check_names(packed.files)
    manifest = _encode_manifest(packed)
    sbom = bundle_sbom(packed, _sha256(manifest))
    signatures = _signatures(packed, manifest, sbom, key)
    texts = {MANIFEST: manifest, SBOM: sbom}
    if signatures:
        texts[SIGNATURES] = encode_signatures(signatures)
    digest = hashlib.sha256()
    with _replacing(out) as stream:

        def write(data: bytes) -> None:
            stream.write(data)
            digest.update(data)

        for name, data in texts.items():
            write(member_header(name, len(data)) + data + filling(len(data)))
        for name in sorted(packed.files):
            _write_file(write, packed, name)
        write(end_of_pack(stream.tell()))
        size = stream.tell()
    whole = [s for s in signatures if read_statement(s).manifest == _sha256(manifest)]
    signed_by = tuple(signature.public.fingerprint for signature in whole)
    return PackResult(str(out), digest.hexdigest(), size, len(packed.files), left_out, signed_by)


def _is_evidence(name: str) -> bool:
    return name.startswith("reports/") or name == "report.html"


def _without(bundle: Bundle, names: Iterable[str]) -> Bundle:
    gone = set(names)
    files = {name: entry for name, entry in bundle.files.items() if name not in gone}
    return replace(bundle, files=files)


def _encode_manifest(bundle: Bundle) -> bytes:
    manifest = {
        "schema": SCHEMA,
        "input": bundle.spec.to_json(),
        "embedding_dim": bundle.embedding_dim,
        "files": {name: bundle.files[name] for name in sorted(bundle.files)},
        "history": bundle.history,
    }
    return encode_json(manifest, indent=2)


def _signatures(
    bundle: Bundle, manifest: bytes, sbom: bytes, key: SigningKey | None
) -> tuple[Signature, ...]:
    files = {name: entry.sha256 for name, entry in bundle.files.items()}
    new = None
    if key is not None:
        statement = state_files(bundle, bundle.files)
        statement = replace(statement, manifest=_sha256(manifest), sbom=_sha256(sbom))
        new = sign_statement(statement, key)
    return merge_signature(read_signatures(bundle.root), new, files)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_file(write: Write, bundle: Bundle, name: str) -> None:
    """Copy a file of the bundle, and check its bytes on the way."""
    entry, path = bundle.files[name], bundle.path(name)
    if link := linked_part(bundle.root, path.relative_to(bundle.root).as_posix()):
        raise BundleError(f"{link} is a link; a bundle holds no links")
    write(member_header(name, entry.size))
    digest, left = hashlib.sha256(), entry.size
    with open_regular(path) as stream:
        while left >= 0 and (piece := stream.read(min(_PIECE, left + 1))):
            left -= len(piece)
            digest.update(piece)
            write(piece)
    if left or digest.hexdigest() != entry.sha256:
        raise BundleError(
            f"{path} was changed: it is not what the manifest lists",
            "restore the file, or run the stage that made it again",
        )
    write(filling(entry.size))


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MachineError(f"there is no folder {path.parent}", "make it first") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
