"""Keys: made readable by nobody else, compatible with OpenSSH's, and trusted where they lie."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from packs import make_key

from fr_edge.bundle.keys import (
    PASSPHRASE,
    TRUSTED_KEYS,
    PublicKey,
    make_key_pair,
    read_public_key,
    read_signing_key,
    trusted_keys,
)
from fr_edge.errors import DataError, UsageError

# RFC 8032, 7.1, tests 1 and 2: secret key, public key, message, signature.
RFC = (
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
     "d25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
     "387b2eaeb4302aeeb00d291612bb0c00"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)
    monkeypatch.delenv(PASSPHRASE, raising=False)
    return tmp_path / "config"


@pytest.mark.parametrize(("public", "message", "signature"), RFC)
def test_signatures_are_those_of_rfc_8032(public: str, message: str, signature: str) -> None:
    key, data = PublicKey(bytes.fromhex(public)), bytes.fromhex(message)
    assert key.verifies(bytes.fromhex(signature), data)
    assert not key.verifies(bytes.fromhex(signature), data + b"\x00")
    assert not key.verifies(bytes.fromhex(signature)[::-1], data)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_nobody_else_reads_a_private_key(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        key = make_key(tmp_path)
    finally:
        os.umask(before)
    private, public = tmp_path / "maker.key", tmp_path / "maker.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) & 0o022 == 0
    assert read_public_key(public) == key.public
    assert key.public.raw not in private.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        make_key_pair(private, tmp_path / "new.pub")
    with pytest.raises(UsageError, match="never overwritten"):
        make_key_pair(tmp_path / "new.key", public)
    assert sorted(os.listdir(tmp_path)) == ["maker.key", "maker.pub"]
    for mode in (0o640, 0o604, 0o660):
        private.chmod(mode)
        with pytest.raises(DataError, match="others may read"):
            read_signing_key(private)


def test_an_encrypted_key_needs_its_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "maker.key"
    public = make_key_pair(private, tmp_path / "maker.pub", b"right")
    assert b"ENCRYPTED" in private.read_bytes()
    assert read_signing_key(private, lambda: "right").public == public
    for ask, match in ((None, "no passphrase"), (lambda: "wrong", "passphrase is wrong")):
        with pytest.raises(DataError, match=match):
            read_signing_key(private, ask)
    monkeypatch.setenv(PASSPHRASE, "right")
    assert read_signing_key(private).public == public


def test_keys_of_openssh_and_openssl_are_taken(tmp_path: Path) -> None:
    for program in ("ssh-keygen", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    ssh = tmp_path / "id_ed25519"

    def call(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh))
    key = read_signing_key(ssh)
    assert key.public == read_public_key(Path(f"{ssh}.pub"))
    assert key.public.fingerprint == call("ssh-keygen", "-lf", str(ssh)).split()[1]
    pem, public = tmp_path / "a.pem", tmp_path / "a.pub.pem"
    call("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(pem))
    call("openssl", "pkey", "-in", str(pem), "-pubout", "-out", str(public))
    pem.chmod(0o600)
    key = read_signing_key(pem)
    assert key.public == read_public_key(public)
    (tmp_path / "data").write_bytes(b"data")
    (tmp_path / "signature").write_bytes(key.sign(b"data"))
    verify = ("openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", str(public))
    call(*verify, "-in", str(tmp_path / "data"), "-sigfile", str(tmp_path / "signature"))
    call("ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", str(tmp_path / "rsa"))
    for read, path in ((read_signing_key, "rsa"), (read_public_key, "rsa.pub")):
        with pytest.raises(DataError, match="expected Ed25519"):
            read(tmp_path / path)


@pytest.mark.parametrize(
    "data", [b"", b"ssh-ed25519 AAAA", b"-----BEGIN PUBLIC KEY-----\n", b"\x00" * 99, b"x" * 20_000,
             b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"],
)  # fmt: skip
def test_what_is_not_a_key_is_refused_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    path.chmod(0o600)
    for read in (read_signing_key, read_public_key):
        with pytest.raises(DataError):
            read(path)


def test_what_is_not_a_file_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", Path("/dev/zero"), tmp_path / "nothing"):
        for read in (read_signing_key, read_public_key):
            with pytest.raises(DataError):
                read(place)


def test_a_key_is_trusted_by_name_by_variable_or_by_folder(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trusted_keys() == ()
    keys = {name: make_key(tmp_path, name).public for name in ("a", "b", "c", "d")}
    assert trusted_keys([tmp_path / "a.pub"]) == (keys["a"],)
    device = tmp_path / "device"
    device.mkdir()
    shutil.copy(tmp_path / "b.pub", device)
    (device / "readme.txt").write_text("not a key")
    monkeypatch.setenv(TRUSTED_KEYS, f"{device}:{tmp_path / 'c.pub'}")
    (home / "fr-edge" / "trusted").mkdir(parents=True)
    shutil.copy(tmp_path / "d.pub", home / "fr-edge" / "trusted")
    found = trusted_keys([tmp_path / "a.pub", tmp_path / "a.pub"])
    assert set(found) == set(keys.values())
    assert [key.name for key in found] == ["a", "b", "c", "d"]
    (device / "b.pub").chmod(0o666)
    with pytest.raises(DataError, match="others may replace"):
        trusted_keys()
    (device / "b.pub").chmod(0o644)
    device.chmod(0o777)
    with pytest.raises(DataError, match="others may write"):
        trusted_keys()
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "nothing.pub"))
    with pytest.raises(DataError, match="cannot be read"):
        trusted_keys()
