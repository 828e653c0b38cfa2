"""Make a bundle of a pack: all of it arrives, or nothing; see `pack_format`."""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, MachineError, UsageError
from ..files import sync
from ..interruption import deferred_signals
from .keys import PublicKey
from .manifest import MANIFEST, Bundle, read_manifest
from .pack_format import AGAIN, TEXTS, PackReader, check_names, open_regular
from .sbom import SBOM
from .signature import SIGNATURES, decode_signatures, describe_key, trusted_statements

logger = logging.getLogger(__name__)


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
    while it is.

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
    with open_regular(file) as stream, _draft_beside(folder, force) as draft:
        reader = PackReader(stream, file)
        texts = {name: data for name in TEXTS if (data := reader.read_text(name)) is not None}
        if SBOM not in texts:
            raise BundleError(f"{file} lacks {SBOM}", AGAIN)
        for name, data in texts.items():
            (draft / name).write_bytes(data)
        bundle = read_manifest(draft, "manifest")
        check_names(bundle.files)
        signed_by = _signers(file, texts, tuple(keys))
        if not signed_by:
            _accept_unsigned(file, texts, allow_unsigned)
        for name in sorted(bundle.files):
            _write_file(reader, bundle, name)
        reader.check_end(bundle.files)
        for parent in {path.parent for path in draft.rglob("*")}:
            sync(parent)
    size = sum(entry.size for entry in bundle.files.values())
    return UnpackResult(str(out), len(bundle.files), size, tuple(map(describe_key, signed_by)))


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


def _write_file(reader: PackReader, bundle: Bundle, name: str) -> None:
    path = bundle.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        reader.copy(name, bundle.files[name], bundle.files, stream.write)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _draft_beside(out: Path, force: bool) -> Iterator[Path]:
    """A folder that becomes `out` at the end of the block; on an exception nothing is left.

    What a killed run has left beside `out` is removed, or put back where it was on the way out.
    """
    if not out.name:
        raise UsageError("the bundle's folder has no name", "name a new folder: --out DIR")
    draft, old = (out.with_name(f".{out.name}.{word}") for word in ("unpack", "replaced"))
    with _made(draft):
        if os.path.lexists(old):
            if os.path.lexists(out):
                shutil.rmtree(old)
            else:
                old.rename(out)
        _check_target(out, force)
        yield draft
        if not os.path.lexists(out):
            draft.rename(out)
        else:
            busy = "is being written by another command"
            with _exclusive(out, busy), deferred_signals():
                out.rename(old)
                try:
                    draft.rename(out)
                except OSError:
                    old.rename(out)
                    raise
                shutil.rmtree(old)
        sync(out.parent)


@contextmanager
def _made(draft: Path) -> Iterator[None]:
    """An empty folder that no other command uses; removed at the end."""
    if draft.is_symlink() or (draft.exists() and not draft.is_dir()):
        raise UsageError(f"{draft} is in the way", "remove it")
    try:
        draft.mkdir(exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no folder {draft.parent}", "make it first") from error
    except OSError as error:
        raise MachineError(f"{draft.parent} cannot be written: {error.strerror}") from error
    with _exclusive(draft, "is being unpacked by another command"):
        try:
            for path in draft.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield
        except BaseException:  # else it has become the bundle
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def _exclusive(folder: Path, busy: str) -> Iterator[None]:
    import fcntl  # not on Windows, where the command line refuses to start

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.lstat(folder)):
                raise FileNotFoundError(folder)
        except OSError as error:
            raise MachineError(f"{folder} {busy}", "wait for it, then run this again") from error
        yield
    finally:
        os.close(handle)


def _check_target(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"{out} exists", "choose a new folder for --out, or add --force")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not a bundle", "--force replaces bundles only")
