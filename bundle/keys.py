"""Ed25519 keys: making a pair, reading the user's own, and which public keys this machine trusts.

A public key is trusted when it is named (`--trust`), or lies in a folder of the user or the device.
The package `cryptography` does the arithmetic; it is imported when a key is used.
"""

import base64
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DataError, MachineError, UsageError, install_hint
from ..files import sync
from ..reading import open_file

TRUSTED_KEYS = "FR_EDGE_TRUSTED_KEYS"  # variable: files or folders of public keys, separated by ":"
PASSPHRASE = "FR_EDGE_KEY_PASSPHRASE"  # variable: of the private key

_MAX_KEY_BYTES = 16_384  # of a key's file; an Ed25519 key has under 1,000
_OTHERS_READ = 0o077
_OTHERS_WRITE = 0o002


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        raw: The key, 32 bytes.
        name: Its file's name or comment, for people.
    """

    raw: bytes
    name: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: SHA256 of the key in OpenSSH's encoding, base64."""
        kind = b"ssh-ed25519"
        wire = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, self.raw))
        return "SHA256:" + base64.b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the key's owner signed the data.

        Args:
            signature: 64 bytes.
            data: What was signed.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key.

    Attributes:
        public: Its public key.
    """

    public: PublicKey
    _private: Any = field(repr=False, compare=False)

    def sign(self, data: bytes) -> bytes:
        """Sign data; the same data gives the same signature.

        Args:
            data: Any bytes.

        Returns:
            64 bytes.
        """
        signature: bytes = self._private.sign(data)
        return signature


def make_key_pair(private: Path, public: Path, passphrase: bytes = b"") -> PublicKey:
    """Write a new key pair: PKCS #8 PEM, readable by this user only, and an OpenSSH public key.

    Args:
        private: The private key's file, which must not exist.
        public: The public key's file, which must not exist.
        passphrase: Encrypts the private key; b"" leaves it unencrypted.

    Returns:
        The public key.

    Raises:
        UsageError: A file exists, or the folder does not.
        MachineError: cryptography is not installed.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if os.path.lexists(path):
            raise UsageError(f"{path} exists; a key is never overwritten", "choose another NAME")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    try:
        _write_new(private, secret, 0o600)
        _write_new(public, line + b" " + public.stem.encode() + b"\n", 0o644)
    except FileNotFoundError as error:
        raise UsageError(f"there is no folder {private.parent}", "make it first") from error
    sync(private.parent)
    return PublicKey(_raw(key.public_key()), public.stem)


def read_signing_key(path: Path, ask: Callable[[], str] | None = None) -> SigningKey:
    """Read an Ed25519 private key: PEM, or OpenSSH's format.

    Args:
        path: The private key's file.
        ask: Asks for the passphrase of an encrypted key, where FR_EDGE_KEY_PASSPHRASE is not set.

    Raises:
        DataError: The file is not an Ed25519 private key, others may read it, or the passphrase is
            wrong or missing.
        MachineError: cryptography is not installed.
    """
    serialization = _serialization()
    data, mode = _read_key_file(path)
    if data.startswith(b"ssh-"):
        raise DataError(
            f"{path} is a public key", "give the private one; `fr-edge keygen NAME` writes NAME.key"
        )
    if mode & _OTHERS_READ:
        raise DataError(
            f"{path} is a private key that others may read (mode {mode:03o})", f"chmod 600 {path}"
        )
    openssh = data.lstrip().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    key = _loaded(path, data, load, ask)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path} is a key of another kind; expected Ed25519", _MAKE_ONE)
    return SigningKey(PublicKey(_raw(key.public_key()), path.stem), key)


_MAKE_ONE = "`fr-edge keygen NAME` or `ssh-keygen -t ed25519` makes one"


def _loaded(
    path: Path, data: bytes, load: Callable[..., Any], ask: Callable[[], str] | None
) -> Any:
    """The private key, with the passphrase if it needs one."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(data, None)
    except TypeError:  # encrypted
        passphrase = os.environ.get(PASSPHRASE) or (ask() if ask else "")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} is not a private key: {error}", _MAKE_ONE) from error
    if not passphrase:
        raise DataError(f"{path} is encrypted, and no passphrase was given", f"set {PASSPHRASE}")
    try:
        return load(data, passphrase.encode())
    except ValueError as error:
        raise DataError(f"{path}: the passphrase is wrong") from error
    except UnsupportedAlgorithm as error:  # OpenSSH's encryption needs the package bcrypt
        raise DataError(
            f"{path}: its encryption is not supported here: {error}",
            f"use a key that `fr-edge keygen` made, or `ssh-keygen -p -m PKCS8 -f {path}`",
        ) from error


def read_public_key(path: Path) -> PublicKey:
    """Read an Ed25519 public key: an OpenSSH line (`ssh-ed25519 AAAA... comment`) or PEM.

    Args:
        path: The public key's file.

    Raises:
        DataError: The file is not an Ed25519 public key, or others may write it.
        MachineError: cryptography is not installed.
    """
    serialization = _serialization()
    data, mode = _read_key_file(path)
    if mode & _OTHERS_WRITE:
        raise DataError(
            f"{path} is a trusted key that others may replace (mode {mode:03o})",
            f"chmod go-w {path}",
        )
    pem = data.lstrip().startswith(b"-----")
    load = serialization.load_pem_public_key if pem else serialization.load_ssh_public_key
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(
            f"{path} is not a public key: {error}",
            "expected `ssh-ed25519 AAAA...` or a PEM of an Ed25519 public key",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise DataError(f"{path} is a key of another kind; expected Ed25519", _MAKE_ONE)
    return PublicKey(_raw(key), path.stem)


def trusted_keys(named: Iterable[Path] = ()) -> tuple[PublicKey, ...]:
    """The public keys that this machine trusts.

    Args:
        named: Files or folders of public keys, besides those of FR_EDGE_TRUSTED_KEYS and of the
            user's folder `fr-edge/trusted` (in XDG_CONFIG_HOME or ~/.config).

    Raises:
        DataError: A file is not an Ed25519 public key, is missing, or others may write it.
        MachineError: cryptography is not installed.
    """
    variable = os.environ.get(TRUSTED_KEYS, "")
    places = [*named, *(Path(part) for part in variable.split(os.pathsep) if part)]
    if (own := config_folder() / "trusted").is_dir():
        places.append(own)
    keys: dict[bytes, PublicKey] = {}
    for path in (file for place in places for file in _key_files(place)):
        key = read_public_key(path)
        keys.setdefault(key.raw, key)
    return tuple(keys.values())


def config_folder() -> Path:
    """The user's folder for fr-edge's settings: `fr-edge` in XDG_CONFIG_HOME or ~/.config."""
    return _user_folder("XDG_CONFIG_HOME", ".config")


def state_folder() -> Path:
    """The user's folder for what fr-edge notes: `fr-edge` in XDG_STATE_HOME or ~/.local/state."""
    return _user_folder("XDG_STATE_HOME", ".local/state")


def require_cryptography() -> None:
    """Raise where signatures can be neither made nor checked.

    Raises:
        MachineError: cryptography is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "signatures need the package cryptography, which is not installed",
            install_hint("sign"),
        ) from error


def _user_folder(variable: str, otherwise: str) -> Path:
    base = os.environ.get(variable, "")
    try:
        return (Path(base) if base else Path.home() / otherwise) / "fr-edge"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(os.devnull) / "fr-edge"


def _key_files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    mode = stat.S_IMODE(place.stat().st_mode)
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise DataError(
            f"{place} is a folder of trusted keys that others may write (mode {mode:03o})",
            f"chmod go-w {place}",
        )
    yield from sorted(place.glob("*.pub"))


def _read_key_file(path: Path) -> tuple[bytes, int]:
    """The content and the permissions of a regular file of a key's size."""
    try:
        with open_file(path) as stream:
            status = os.fstat(stream.fileno())
            if status.st_size > _MAX_KEY_BYTES:
                raise DataError(f"{path} is not a key's file", _MAKE_ONE)
            return stream.read(_MAX_KEY_BYTES), stat.S_IMODE(status.st_mode)
    except OSError as error:
        raise DataError(f"the key {path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _serialization() -> ModuleType:
    require_cryptography()
    from cryptography.hazmat.primitives import serialization

    module: ModuleType = serialization
    return module


def _raw(key: Any) -> bytes:
    serialization = _serialization()
    data: bytes = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return data
