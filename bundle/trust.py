"""Which files of a bundle may be used here: any, or only those that a trusted key has signed.

A device asks for signatures by its environment, a command by `--require-signature`, a policy by
`require_signature`. `open_bundle`, `open_session` and `build_engine` then refuse everything else.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BundleError, UsageError
from .keys import TRUSTED_KEYS, require_cryptography, trusted_keys
from .manifest import Bundle
from .signature import SIGNATURES, read_signatures, read_statement, signed_files, trusted_statements

REQUIRE_SIGNATURE = (
    "FR_EDGE_REQUIRE_SIGNATURE"  # variable: 1 on a device that runs signed files only
)


@dataclass(frozen=True)
class SignatureRow:
    """A signature of a bundle, as people see it.

    Attributes:
        key: The key's fingerprint.
        name: The name that a trusted key has here; "" for a key that is not trusted.
        trusted: Whether the key is trusted here. Others are not verified.
        files: How many of the bundle's files it covers as they are.
    """

    key: str
    name: str
    trusted: bool
    files: int


def list_signatures(bundle: Bundle) -> tuple[SignatureRow, ...]:
    """Whose signatures a bundle carries.

    Args:
        bundle: An open bundle; only its manifest and its signatures are read.

    Raises:
        BundleError: The signatures are damaged, or one of a trusted key does not hold.
        MachineError: There are signatures and trusted keys, and cryptography is not installed.
    """
    signatures = read_signatures(bundle.root)
    keys = trusted_keys() if signatures else ()
    trusted = dict(trusted_statements(signatures, keys, bundle.root / SIGNATURES))
    names = {key.raw: key.name for key in trusted}
    held = {(name, entry.sha256) for name, entry in bundle.files.items()}
    return tuple(
        SignatureRow(
            signature.public.fingerprint,
            names.get(signature.public.raw, ""),
            signature.public.raw in names,
            len(held & set(read_statement(signature).files.items())),
        )
        for signature in signatures
    )


def signature_required() -> bool:
    """Whether FR_EDGE_REQUIRE_SIGNATURE asks that only signed files are used.

    Raises:
        UsageError: The variable is neither a yes nor a no.
    """
    value = os.environ.get(REQUIRE_SIGNATURE, "").strip().lower()
    if value in ("", "0", "no", "false"):
        return False
    if value in ("1", "yes", "true"):
        return True
    raise UsageError(f"{REQUIRE_SIGNATURE} is {value!r}; expected 1 or 0")


@contextmanager
def requiring_signatures(required: bool | None, named: Iterable[Path] = ()) -> Iterator[None]:
    """Ask for signed files within a `with` block, in programs that it starts too.

    Args:
        required: Whether to ask; None leaves it as the environment says. False is for bundles that
            this program has just made itself.
        named: Files or folders of public keys to trust, besides those that are.
    """
    names = (REQUIRE_SIGNATURE, TRUSTED_KEYS)
    before = {name: os.environ.get(name) for name in names}
    places = [str(path.absolute()) for path in named]
    if required is not None:
        os.environ[REQUIRE_SIGNATURE] = "1" if required else "0"
    if places:
        os.environ[TRUSTED_KEYS] = os.pathsep.join((*places, *filter(None, [before[TRUSTED_KEYS]])))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def with_required_signatures(bundle: Bundle) -> Bundle:
    """The same bundle, of which only files that a trusted key has signed can be used.

    Args:
        bundle: An open bundle.

    Raises:
        BundleError: No key is trusted here, or the signatures are damaged or do not hold.
        MachineError: cryptography is not installed.
    """
    require_cryptography()
    keys = trusted_keys()
    if not keys:
        raise BundleError(
            "a signature is required, and no key is trusted here",
            "name the maker's public key: --trust KEY.pub, or copy it to ~/.config/fr-edge/trusted/",
        )
    return replace(bundle, signed=signed_files(bundle, keys))


def vouched_for(bundle: Bundle, name: str) -> bool:
    """Whether a trusted key has signed a file, where a signature is not required too.

    Args:
        bundle: An open bundle.
        name: Path of a file that its manifest lists.

    Raises:
        BundleError: The signatures are damaged, or one of a trusted key does not hold.
        MachineError: There are signatures, and cryptography is not installed.
    """
    if bundle.signed is None and not read_signatures(bundle.root):
        return False
    signed = signed_files(bundle, trusted_keys()) if bundle.signed is None else bundle.signed
    return (name, bundle.files[name].sha256) in signed


def ensure_signatures(bundle: Bundle) -> Bundle:
    """The bundle as this machine may use it: restricted to signed files where those are required.

    Args:
        bundle: An open bundle.

    Raises:
        BundleError, MachineError, UsageError: As `with_required_signatures` and
            `signature_required`.
    """
    wanted = bundle.signed is None and signature_required()
    return with_required_signatures(bundle) if wanted else bundle
