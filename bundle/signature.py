"""Signatures of a bundle's files: who vouches for which bytes.

A signature covers a statement: the sha256 of each file by name, the input contract, and for a pack
the sha256 of the manifest and of the list of parts. It lies in `bundle.signatures.json` beside the
manifest, so that a device can check single files after it has added engines and reports of its own.
"""

import base64
import binascii
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..documents import decode_json, encode_json, to_builtins
from ..errors import BundleError, DataError
from ..files import write_atomic
from ..reading import read_file
from .keys import (
    PublicKey,
    SigningKey,
    require_cryptography,
)
from .manifest import Bundle

logger = logging.getLogger(__name__)

SIGNATURES = "bundle.signatures.json"  # beside the manifest, which does not list it
REQUIRE_SIGNATURE = (
    "FR_EDGE_REQUIRE_SIGNATURE"  # variable: 1 on a device that runs signed files only
)

_CONTEXT = b"fr-edge bundle signature 1\n"  # a signature of anything else never holds here
_SCHEMA = 1


@dataclass(frozen=True)
class Statement:
    """What a signature vouches for.

    Attributes:
        files: Path within the bundle -> sha256.
        input: The input contract, as the manifest has it.
        embedding_dim: Numbers per embedding.
        manifest: sha256 of the pack's manifest; "" for a signature of single files.
        sbom: sha256 of the pack's list of parts; "" for a signature of single files.
    """

    files: Mapping[str, str]
    input: Mapping[str, Any]
    embedding_dim: int
    manifest: str = ""
    sbom: str = ""


@dataclass(frozen=True)
class Signature:
    """A statement and its signature.

    Attributes:
        key: The public key, base64 of its 32 bytes.
        statement: The statement as JSON text, exactly as it was signed.
        signature: base64 of 64 bytes.
    """

    key: str
    statement: str
    signature: str

    @property
    def public(self) -> PublicKey:
        """The key that the signature names; whether it is trusted is another question."""
        return PublicKey(base64.b64decode(self.key))


@dataclass(frozen=True)
class _SignatureFile:
    schema: int
    signatures: tuple[Signature, ...]


def sign_statement(statement: Statement, key: SigningKey) -> Signature:
    """Sign a statement; the same statement and key give the same signature.

    Args:
        statement: What to vouch for.
        key: A private key.
    """
    text = encode_json(replace(statement, files=dict(sorted(statement.files.items()))), indent=0)
    signed = key.sign(_CONTEXT + text)
    return Signature(
        base64.b64encode(key.public.raw).decode(), text.decode(), base64.b64encode(signed).decode()
    )


def state_files(bundle: Bundle, names: Iterable[str]) -> Statement:
    """The statement about files of a bundle as its manifest has them.

    Args:
        bundle: An open bundle.
        names: Paths of files within it.
    """
    files = {name: bundle.files[name].sha256 for name in names}
    return Statement(files, to_builtins(bundle.spec.to_json()), bundle.embedding_dim)


def encode_signatures(signatures: Iterable[Signature]) -> bytes:
    """The content of the signatures' file.

    Args:
        signatures: In the order in which they are written.
    """
    return encode_json(_SignatureFile(_SCHEMA, tuple(signatures)))


def decode_signatures(data: bytes, where: str | Path) -> tuple[Signature, ...]:
    """Read the content of a signatures' file; nothing is verified.

    Args:
        data: The file's bytes.
        where: The file, for the error.

    Raises:
        BundleError: The content is not a list of signatures.
    """
    try:
        content = decode_json(data, _SignatureFile, where)
        if content.schema != _SCHEMA:
            raise DataError(f"schema {content.schema}, expected {_SCHEMA}")
        for signature in content.signatures:
            sizes = [len(_bytes(text)) for text in (signature.key, signature.signature)]
            if sizes != [32, 64]:
                raise DataError(f"a key of {sizes[0]} and a signature of {sizes[1]} bytes")
    except (DataError, binascii.Error, ValueError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from error
    return content.signatures


def read_signatures(root: Path) -> tuple[Signature, ...]:
    """The signatures of a bundle; nothing is verified.

    Args:
        root: The bundle's folder.

    Raises:
        BundleError: The file is a link, too large or damaged.
    """
    path = root / SIGNATURES
    if not os.path.lexists(path):
        return ()
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is not a file", f"remove {SIGNATURES}")
    return decode_signatures(read_file(path, "JSON_MB", BundleError), path)


def read_statement(signature: Signature) -> Statement:
    """What a signature claims to vouch for; nothing is verified.

    Args:
        signature: As it was read.

    Raises:
        BundleError: The statement is not one.
    """
    try:
        return decode_json(signature.statement.encode(), Statement, SIGNATURES)
    except DataError as error:
        raise BundleError(error.message, f"remove {SIGNATURES} from the bundle") from error


def trusted_statements(
    signatures: Iterable[Signature], keys: Iterable[PublicKey], where: str | Path
) -> Iterator[tuple[PublicKey, Statement]]:
    """The statements that trusted keys have signed.

    Args:
        signatures: As they were read; those of other keys are passed over.
        keys: The trusted keys.
        where: The file, for the error.

    Yields:
        The key, with the name it has here, and what it vouches for.

    Raises:
        BundleError: A signature that names a trusted key is not of that key: the statement was
            changed.
    """
    known = {key.raw: key for key in keys}
    for signature in signatures:
        key = known.get(signature.public.raw)
        if key is None:
            continue
        text = signature.statement.encode()
        if not key.verifies(_bytes(signature.signature), _CONTEXT + text):
            raise BundleError(
                f"{where}: the signature by {describe_key(key)} does not hold: what it covers was"
                " changed",
                "get the bundle again from its maker",
            )
        yield key, read_statement(signature)


def signed_files(bundle: Bundle, keys: Iterable[PublicKey]) -> frozenset[tuple[str, str]]:
    """The files of a bundle that trusted keys vouch for.

    Args:
        bundle: An open bundle; only its manifest and its signatures are read.
        keys: The trusted keys.

    Returns:
        Path and sha256 of each. Statements about another input contract do not count.

    Raises:
        BundleError: The signatures are damaged, or one of a trusted key does not hold.
        MachineError: cryptography is not installed.
    """
    require_cryptography()
    signatures = read_signatures(bundle.root)
    contract = to_builtins(bundle.spec.to_json())
    return frozenset(
        pair
        for _, statement in trusted_statements(signatures, keys, bundle.root / SIGNATURES)
        if statement.input == contract and statement.embedding_dim == bundle.embedding_dim
        for pair in statement.files.items()
    )


def merge_signature(
    signatures: Iterable[Signature], new: Signature | None, files: Mapping[str, str]
) -> tuple[Signature, ...]:
    """A bundle's signatures after another one.

    Args:
        signatures: The earlier ones. Those are dropped that vouch for no file which the bundle
            still holds, or for none that the new one of the same key does not cover.
        new: The new signature, if there is one.
        files: Path -> sha256 of the files that the bundle holds now.
    """
    covered = set(_claims(new)) if new else set()
    kept = [
        old
        for old in signatures
        if (claims := set(_claims(old)) & set(files.items()))
        and not (new and old.key == new.key and claims <= covered)
    ]
    return (*kept, new) if new else tuple(kept)


def add_signature(bundle: Bundle, names: Iterable[str], key: SigningKey) -> None:
    """Sign files of a bundle, beside the signatures that it has.

    Args:
        bundle: The bundle, opened after its last change.
        names: Paths of files within it.
        key: A private key.
    """
    new = sign_statement(state_files(bundle, names), key)
    files = {name: entry.sha256 for name, entry in bundle.files.items()}
    signatures = merge_signature(read_signatures(bundle.root), new, files)
    write_atomic(bundle.root / SIGNATURES, encode_signatures(signatures))


def describe_key(key: PublicKey) -> str:
    """A key in words: its name and fingerprint.

    Args:
        key: A public key.
    """
    return f"{key.name} ({key.fingerprint})" if key.name else key.fingerprint


def _claims(signature: Signature) -> Iterable[tuple[str, str]]:
    return read_statement(signature).files.items()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
