"""A bundle as one file: the same bytes from the same content, and back without a difference."""

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from packs import FILES, content, edit, keys_of, make_key, members, write_bundle

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.pack import pack, unpack
from fr_edge.bundle.sbom import SBOM
from fr_edge.bundle.signature import SIGNATURES
from fr_edge.errors import BundleError, MachineError, UsageError


def test_there_and_back_without_a_difference(tmp_path: Path) -> None:
    root, key = write_bundle(tmp_path / "a.bundle"), make_key(tmp_path)
    result = pack(root, tmp_path / "a.frb", key)
    data = (tmp_path / "a.frb").read_bytes()
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert (result.size, result.files) == (len(data), len(FILES))
    assert result.signed_by == (key.public.fingerprint,)
    done = unpack(tmp_path / "a.frb", tmp_path / "b.bundle", keys_of(key))
    assert done.signed_by == (f"maker ({key.public.fingerprint})",)
    before, after = content(root), content(tmp_path / "b.bundle")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {SBOM, SIGNATURES}
    assert open_bundle(tmp_path / "b.bundle", check="all").history[0]["stage"] == "export"
    assert sorted(os.listdir(tmp_path)) == [
        "a.bundle",
        "a.frb",
        "b.bundle",
        "maker.key",
        "maker.pub",
    ]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Packed elsewhere, under another umask, with other times, by another process and locale."""
    key = make_key(tmp_path)
    root = write_bundle(tmp_path / "a.bundle", {**FILES, "reports/Äé.json": b"{}"})
    first = pack(root, tmp_path / "a.frb", key).sha256
    unpack(tmp_path / "a.frb", tmp_path / "deep" / ".." / "other.bundle", keys_of(key))
    for path in (tmp_path / "other.bundle").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    code = (
        "import os, sys; os.umask(0o077)\n"
        "from pathlib import Path\n"
        "from fr_edge.bundle.keys import read_signing_key\n"
        "from fr_edge.bundle.pack import pack\n"
        "print(pack(sys.argv[1], sys.argv[2], read_signing_key(Path(sys.argv[3]))).sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "other.bundle", "again.frb", "maker.key"],
        cwd=tmp_path,
        env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == first
    assert (
        pack(tmp_path / "other.bundle", tmp_path / "kept.frb").sha256 == first
    )  # keeps signatures


def test_the_order_of_a_manifest_does_not_count(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "a.bundle")
    first = pack(root, tmp_path / "a.frb").sha256
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"] = dict(reversed(manifest["files"].items()))
    (root / "bundle.json").write_text(json.dumps(dict(reversed(manifest.items()))))
    assert pack(root, tmp_path / "b.frb").sha256 == first


def test_a_pack_is_an_ordinary_tar_without_traces_of_this_machine(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "a.bundle")
    (root / "reports" / "notes.txt").write_text("not listed")
    pack(root, tmp_path / "a.frb")
    rows = members(tmp_path / "a.frb")
    names = [info.name for info, _ in rows]
    assert names == ["bundle.json", SBOM, *sorted(FILES)]
    assert (tmp_path / "a.frb").stat().st_size % 10_240 == 0
    for info, _ in rows:
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
        assert (info.mode, info.type) == (0o644, tarfile.REGTYPE)
    data = (tmp_path / "a.frb").read_bytes()
    assert str(tmp_path).encode() not in data
    assert os.uname().nodename.encode() not in data


def test_golden_faces_are_for_their_user_alone(tmp_path: Path) -> None:
    pack(write_bundle(tmp_path / "a.bundle", {**FILES, "golden.npz": b"faces"}), tmp_path / "a.frb")
    before = os.umask(0o022)
    try:
        unpack(tmp_path / "a.frb", tmp_path / "b.bundle", allow_unsigned=True)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "b.bundle").rglob("*")}
    assert modes.pop("golden.npz") == 0o600
    assert set(modes.values()) == {0o644, 0o755}


def test_reports_stay_at_home(tmp_path: Path) -> None:
    root, key = write_bundle(tmp_path / "a.bundle"), make_key(tmp_path)
    result = pack(root, tmp_path / "a.frb", key, reports=False)
    assert list(result.left_out) == ["reports/verify-int8.json"]
    unpack(tmp_path / "a.frb", tmp_path / "b.bundle", keys_of(key))
    assert "reports/verify-int8.json" not in open_bundle(tmp_path / "b.bundle", check="all")


def test_a_bundle_that_is_not_whole_is_not_packed(tmp_path: Path) -> None:
    for name, spoil in (
        ("changed", lambda root: (root / "model.onnx").write_bytes(b"weightz" * 300)),
        ("longer", lambda root: (root / "model.onnx").write_bytes(b"weights" * 301)),
        ("shorter", lambda root: (root / "model.onnx").write_bytes(b"weights")),
        ("missing", lambda root: (root / "model.onnx").unlink()),
    ):
        root = write_bundle(tmp_path / name)
        spoil(root)
        with pytest.raises(BundleError, match=r"model\.onnx"):
            pack(root, tmp_path / "a.frb")
    root = write_bundle(tmp_path / "fifo")
    (root / "empty").unlink()
    os.mkfifo(root / "empty")
    with pytest.raises(BundleError, match="a named pipe, expected a regular file"):
        pack(root, tmp_path / "a.frb")
    root = write_bundle(tmp_path / "linked")
    (root / "empty").unlink()
    (root / "empty").symlink_to("/dev/null")
    with pytest.raises(BundleError, match="is a link"):
        pack(root, tmp_path / "a.frb")
    assert not list(tmp_path.glob("*a.frb*"))


@pytest.mark.parametrize("name", ["n" * 101, "f" * 156 + "/x", "Model.onnx", "model.onnx/x", "_x"])
def test_names_that_some_machine_cannot_hold_are_not_packed(tmp_path: Path, name: str) -> None:
    root = write_bundle(tmp_path / "a.bundle", {"model.onnx": b"1"})
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"][name] = manifest["files"]["model.onnx"]
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        pack(root, tmp_path / "a.frb")


def test_where_a_pack_may_be_written(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "a.bundle")
    with pytest.raises(UsageError, match="lies in the bundle"):
        pack(root, root / "reports" / "a.frb")
    with pytest.raises(UsageError, match="not a file"):
        pack(root, "/dev/null")
    with pytest.raises(MachineError, match="no folder"):
        pack(root, tmp_path / "nowhere" / "a.frb")
    (tmp_path / "a.frb").write_text("old")
    pack(root, tmp_path / "a.frb")
    assert unpack(tmp_path / "a.frb", tmp_path / "b", allow_unsigned=True).files == len(FILES)


KILLED = """
import os, sys
from fr_edge.bundle import pack
real = pack._pack_file
def pack_file(*args):
    real(*args)
    os.kill(os.getpid(), 9)
pack._pack_file = pack_file
pack.pack(sys.argv[1], sys.argv[2])
"""


def test_what_a_killed_pack_leaves_is_used_up_by_the_next(tmp_path: Path) -> None:
    root, out = write_bundle(tmp_path / "a.bundle"), tmp_path / "a.frb"
    out.write_text("old")
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, root, out], check=False)
        assert killed.returncode == -9
        assert out.read_text() == "old"
        assert len(os.listdir(tmp_path)) == 3
    pack(root, out)
    assert sorted(os.listdir(tmp_path)) == ["a.bundle", "a.frb"]


def test_another_signature_joins_and_one_of_a_changed_bundle_goes(tmp_path: Path) -> None:
    maker, device = make_key(tmp_path), make_key(tmp_path, "device")
    pack(write_bundle(tmp_path / "a.bundle"), tmp_path / "a.frb", maker)
    unpack(tmp_path / "a.frb", tmp_path / "b.bundle", keys_of(maker))
    both = pack(tmp_path / "b.bundle", tmp_path / "b.frb", device)
    assert set(both.signed_by) == {maker.public.fingerprint, device.public.fingerprint}
    for key in (maker, device):
        unpack(tmp_path / "b.frb", tmp_path / f"{key.public.name}.bundle", keys_of(key))
    with transaction(tmp_path / "b.bundle", "test", {}) as change:
        change.path("more", "test").write_bytes(b"more")
    later = pack(tmp_path / "b.bundle", tmp_path / "c.frb", device)
    assert later.signed_by == (device.public.fingerprint,)  # the maker has not seen `more`
    with pytest.raises(BundleError, match="no trusted key has signed it as it is"):
        unpack(tmp_path / "c.frb", tmp_path / "c.bundle", keys_of(maker))


def test_the_list_of_parts_is_cyclonedx(tmp_path: Path) -> None:
    if importlib.util.find_spec("cyclonedx") is None:
        pytest.skip("cyclonedx-python-lib, which brings the schema, is not installed")
    import cyclonedx.schema
    import jsonschema
    import referencing

    folder = Path(cyclonedx.schema.__file__).parent / "_res"
    schemas = [
        json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.6", "spdx", "jsf-0.82")
    ]
    registry: referencing.Registry = referencing.Registry()
    for schema in schemas:
        resource = referencing.Resource.from_contents(schema)
        registry = registry.with_resource(schema["$id"], resource)
    validator = jsonschema.Draft7Validator(schemas[0], registry=registry)
    pack(write_bundle(tmp_path / "a.bundle"), tmp_path / "a.frb")
    document = json.loads(dict((i.name, data) for i, data in members(tmp_path / "a.frb"))[SBOM])
    assert list(validator.iter_errors(document)) == []
    assert list(validator.iter_errors({**document, "version": "one"})) != []
    parts = {part["name"]: part for part in document["components"]}
    digest = hashlib.sha256(FILES["model.onnx"]).hexdigest()
    assert parts["model.onnx"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert parts["numpy"]["purl"].startswith("pkg:pypi/numpy@")
    assert {"python", *FILES} <= set(parts)
    references = [part["bom-ref"] for part in document["components"]]
    assert len(set(references)) == len(references)


def test_an_earlier_list_of_parts_is_taken(tmp_path: Path) -> None:
    """Another fr-edge may write the list in other words; the signature covers it."""
    pack(write_bundle(tmp_path / "a.bundle"), tmp_path / "a.frb")

    def reword(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info, data = rows[1]
        rows[1] = (info, data.replace(b"test", b"TEST"))

    edit(tmp_path / "a.frb", tmp_path / "b.frb", reword)
    unpack(tmp_path / "b.frb", tmp_path / "b.bundle", allow_unsigned=True)


def test_the_signature_can_be_checked_without_fr_edge(tmp_path: Path) -> None:
    """As docs/packs.md has it; the prefix keeps a signature from holding for anything else."""
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    root = write_bundle(tmp_path / "a.bundle")
    pack(root, tmp_path / "a.frb", make_key(tmp_path, "other"))
    rows = {info.name: data for info, data in members(tmp_path / "a.frb")}
    (signature,) = json.loads(rows[SIGNATURES])["signatures"]
    key = load_ssh_public_key((tmp_path / "other.pub").read_bytes())
    data = b"fr-edge bundle signature 1\n" + signature["statement"].encode()
    key.verify(base64.b64decode(signature["signature"]), data)  # type: ignore[union-attr,call-arg]
    statement = json.loads(signature["statement"])
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in rows.items()}
    assert statement["files"] == {name: digests[name] for name in FILES}
    assert (statement["manifest"], statement["sbom"]) == (digests["bundle.json"], digests[SBOM])
