"""A bundle as one file, and back; `pack_format` has the file's format.

`pack` is reproducible: the same content gives the same bytes. `unpack` is all or nothing.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..documents import encode_json
from ..errors import BundleError, DataError, MachineError, UsageError
from ..files import real_path, replace_atomic, sync
from ..reading import read_file
from .bundle import open_bundle
from .derived import is_report
from .draft_folder import draft_beside
from .keys import PublicKey, SigningKey
from .manifest import MANIFEST, SCHEMA, Bundle, linked_part, read_manifest
from .pack_format import (
    AGAIN,
    TEXTS,
    PackReader,
    Write,
    check_names,
    end_of_pack,
    filling,
    member_header,
    open_regular,
)
from .provenance import naming_reports
from .sbom import SBOM, bundle_sbom
from .signature import (
    SIGNATURES,
    Signature,
    decode_signatures,
    describe_key,
    encode_signatures,
    merge_signature,
    read_signatures,
    read_statement,
    sign_statement,
    state_files,
    trusted_statements,
)

logger = logging.getLogger(__name__)

_PIECE = 1 << 20
_PRIVATE = ("golden.npz",)  # its faces may be somebody's


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
    bundle: str | Path,
    out: str | Path,
    key: SigningKey | None = None,
    *,
    reports: bool = True,
    names: bool = False,
) -> PackResult:
    """Write a bundle as one file.

    Signatures that the bundle has are kept where they still speak of its files.

    Args:
        bundle: The bundle's folder.
        out: The file to write.
        key: Signs the pack.
        reports: Whether its reports travel too.
        names: Whether also those that name people's files.

    Raises:
        UsageError: `out` is a folder, or lies in the bundle.
        BundleError: The bundle is damaged, or holds names that a pack cannot have.
        MachineError: The file cannot be written.
    """
    opened, out = open_bundle(bundle, check="manifest"), Path(out)
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is not a file", "name the file to write: --out NAME.frb")
    if real_path(opened.root) in real_path(out).parents:
        raise UsageError(f"{out} lies in the bundle", "write the pack elsewhere")
    left_out = {} if names else naming_reports(opened)
    if not reports:
        left_out = {name: "a report" for name in opened.files if is_report(name)}
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
            _pack_file(write, packed, name)
        write(end_of_pack(stream.tell()))
        size = stream.tell()
    whole = [s for s in signatures if read_statement(s).manifest == _sha256(manifest)]
    signed_by = tuple(signature.public.fingerprint for signature in whole)
    return PackResult(str(out), digest.hexdigest(), size, len(packed.files), left_out, signed_by)


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


def _pack_file(write: Write, bundle: Bundle, name: str) -> None:
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
    try:
        with replace_atomic(path) as stream:
            yield stream
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MachineError(f"there is no folder {path.parent}", "make it first") from error


@dataclass(frozen=True)
class UnpackResult:
    """A bundle that was unpacked.

    Attributes:
        bundle: Its folder.
        files: Files that the manifest lists.
        size: Bytes of these.
        signed_by: Names and fingerprints of the trusted keys that have signed the pack.
    """

    bundle: str
    files: int
    size: int
    signed_by: tuple[str, ...]


def unpack(
    file: str | Path,
    out: str | Path,
    keys: Iterable[PublicKey] = (),
    *,
    allow_unsigned: bool = False,
    force: bool = False,
) -> UnpackResult:
    """Make a bundle of a pack.

    The signature is checked before the first file is written, each file's name, size and sha256
    while it is. A bundle that is there already, whole and of the same pack, is left as it is.

    Args:
        file: The pack.
        out: The bundle's folder.
        keys: The trusted public keys.
        allow_unsigned: Whether to take a pack that no trusted key has signed.
        force: Whether a bundle at `out` is replaced.

    Raises:
        UsageError: `out` exists.
        BundleError: The file is not a pack, is damaged, cut or changed, holds what its manifest does
            not list, or is not signed by a trusted key.
        MachineError: The folder cannot be written, or another command is writing it.
    """
    file, folder = Path(file), Path(os.path.abspath(out))
    with open_regular(file) as stream:
        reader = PackReader(stream, file)
        texts = {name: data for name in TEXTS if (data := reader.read_text(name)) is not None}
        if SBOM not in texts:
            raise BundleError(f"{file} lacks {SBOM}", AGAIN)
        signed_by = _signers(file, texts, tuple(keys))
        same = None if force else _unpacked_before(folder, texts)
        if same and (signed_by or allow_unsigned):
            logger.info("%s holds this pack already; nothing was changed", out)
            return _unpack_result(out, same, signed_by)
        with draft_beside(folder, force) as draft:
            for name, data in texts.items():
                (draft / name).write_bytes(data)
            bundle = read_manifest(draft, "manifest")
            check_names(bundle.files)
            if not signed_by:
                _accept_unsigned(file, texts, allow_unsigned)
            for name in sorted(bundle.files):
                _unpack_file(reader, bundle, name)
            reader.check_end(bundle.files)
            for parent in {path.parent for path in draft.rglob("*")}:
                sync(parent)
    return _unpack_result(out, bundle, signed_by)


def _unpack_result(out: str | Path, bundle: Bundle, keys: Iterable[PublicKey]) -> UnpackResult:
    size = sum(entry.size for entry in bundle.files.values())
    return UnpackResult(str(out), len(bundle.files), size, tuple(map(describe_key, keys)))


def _unpacked_before(folder: Path, texts: Mapping[str, bytes]) -> Bundle | None:
    """The bundle there, if it is whole and has exactly these texts: a run that was killed at its
    very end left it."""
    try:
        for name in TEXTS:
            path = folder / name
            data = read_file(path, "JSON_MB") if os.path.lexists(path) else None
            if data != texts.get(name):
                return None
        return open_bundle(folder, check="all")
    except (OSError, DataError):
        return None


def _signers(
    file: Path, texts: Mapping[str, bytes], keys: tuple[PublicKey, ...]
) -> list[PublicKey]:
    """The trusted keys that have signed the pack as it is."""
    if SIGNATURES not in texts:
        return []
    signatures = decode_signatures(texts[SIGNATURES], f"{file}: {SIGNATURES}")
    manifest, sbom = (hashlib.sha256(texts[name]).hexdigest() for name in (MANIFEST, SBOM))
    return [
        key
        for key, statement in trusted_statements(signatures, keys, file)
        if (statement.manifest, statement.sbom) == (manifest, sbom)
    ]


def _accept_unsigned(file: Path, texts: Mapping[str, bytes], allowed: bool) -> None:
    signatures = decode_signatures(texts[SIGNATURES], file) if SIGNATURES in texts else ()
    names = ", ".join(signature.public.fingerprint for signature in signatures)
    reason = (
        f"{file} carries signatures of {names}; no trusted key has signed it as it is"
        if names
        else f"{file} is not signed"
    )
    if not allowed:
        raise BundleError(
            reason, "name its maker's key: --trust KEY.pub; or take it as it is: --allow-unsigned"
        )
    logger.warning("%s; its files are whole, and their maker is not known", reason)


def _unpack_file(reader: PackReader, bundle: Bundle, name: str) -> None:
    path = bundle.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600 if name in _PRIVATE else 0o666, exist_ok=False)
    with path.open("wb") as stream:
        reader.copy(name, bundle.files[name], bundle.files, stream.write)
        stream.flush()
        os.fsync(stream.fileno())
