"""What is not a whole pack, signed by a trusted key, is refused, and then nothing is left."""

import base64
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="cryptography is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from packs import FILES, Member, content, edit, keys_of, make_key, member, write_bundle, write_tar

from fr_edge.bundle.keys import SigningKey
from fr_edge.bundle.pack import pack, unpack
from fr_edge.bundle.signature import SIGNATURES
from fr_edge.errors import BundleError, MachineError, UsageError

Change = Callable[[list[Member]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SigningKey]:
    """A signed pack, and its key."""
    folder = tmp_path_factory.mktemp("made")
    key = make_key(folder)
    pack(write_bundle(folder / "a.bundle"), folder / "a.frb", key)
    return folder / "a.frb", key


def refuse(file: Path, key: SigningKey, match: str, *, allow_unsigned: bool = True) -> None:
    """Refused with a sentence, and nothing is left beside the pack."""
    before = sorted(os.listdir(file.parent))
    with pytest.raises(BundleError, match=match) as caught:
        unpack(file, file.parent / "out", keys_of(key), allow_unsigned=allow_unsigned)
    assert caught.value.exit_code == 4
    assert sorted(os.listdir(file.parent)) == before


def at(rows: list[Member], name: str) -> int:
    return next(index for index, (info, _) in enumerate(rows) if info.name == name)


def insert(where: str, row: Member) -> Change:
    return lambda rows: rows.insert(at(rows, where), row)


def replace_data(name: str, data: bytes) -> Change:
    def change(rows: list[Member]) -> None:
        rows[at(rows, name)] = member(name, data)

    return change


def edit_text(name: str, old: bytes, new: bytes) -> Change:
    def change(rows: list[Member]) -> None:
        index = at(rows, name)
        assert old in rows[index][1]
        rows[index] = member(name, rows[index][1].replace(old, new))

    return change


def set_field(name: str, **fields: object) -> Change:
    def change(rows: list[Member]) -> None:
        for key, value in fields.items():
            setattr(rows[at(rows, name)][0], key, value)

    return change


def swap(rows: list[Member]) -> None:
    a, b = at(rows, "empty"), at(rows, "model.onnx")
    rows[a], rows[b] = rows[b], rows[a]


FIRST = "empty"  # of the files
HOSTILE: dict[str, tuple[Change, str]] = {
    "symbolic link": (insert(FIRST, member("x", kind=tarfile.SYMTYPE, link="/etc/passwd")), "a symbolic link"),
    "hard link": (insert(FIRST, member("x", kind=tarfile.LNKTYPE, link="bundle.json")), "a hard link"),
    "character device": (insert(FIRST, member("x", kind=tarfile.CHRTYPE)), "a device"),
    "block device": (insert(FIRST, member("x", kind=tarfile.BLKTYPE)), "a device"),
    "FIFO": (insert(FIRST, member("x", kind=tarfile.FIFOTYPE)), "a FIFO"),
    "folder": (insert(FIRST, member("engines", kind=tarfile.DIRTYPE)), "a folder"),
    "contiguous file": (insert(FIRST, member("x", kind=tarfile.CONTTYPE)), "of a kind"),
    "sparse file": (insert(FIRST, member("x", kind=tarfile.GNUTYPE_SPARSE)), "of a kind"),
    "absolute": (insert(FIRST, member("/etc/cron.d/x", b"1")), "outside the bundle"),
    "parent": (insert(FIRST, member("../x", b"1")), "outside the bundle"),
    "parent inside": (insert(FIRST, member("engines/../../x", b"1")), "outside the bundle"),
    "dot": (insert(FIRST, member("./x", b"1")), "may hold"),
    "hidden": (insert(FIRST, member(".draft/x", b"1")), "outside the bundle"),
    "journal": (insert(FIRST, member("bundle.next.json", b"{}")), "may hold"),
    "control characters": (insert(FIRST, member("\x1b[2J", b"1")), "may hold"),
    "unlisted": (insert(FIRST, member("conftest.py", b"1")), "does not list"),
    "unlisted at the end": (lambda rows: rows.append(member("z", b"1")), "does not list"),
    "twice": (insert("reports/verify-int8.json", member("model.onnx", FILES["model.onnx"])), "twice"),
    "second manifest": (insert(FIRST, member("bundle.json", b"{}")), "twice"),
    "other order": (swap, "was expected"),
    "missing": (lambda rows: rows.pop(at(rows, "empty")) and None, "was expected"),
    "missing at the end": (lambda rows: rows.pop() and None, "lacks reports/verify-int8.json"),
    "no manifest": (lambda rows: rows.pop(0) and None, "does not begin with bundle.json"),
    "no list of parts": (lambda rows: rows.pop(1) and None, "lacks bundle.sbom.json"),
    "empty tar": (lambda rows: rows.clear(), "does not begin"),
    "changed": (replace_data("model.onnx", b"weightz" * 300), "was changed"),
    "larger": (replace_data("model.onnx", b"weights" * 301), "2107 bytes, the manifest says 2100"),
    "smaller": (replace_data("model.onnx", b""), "0 bytes, the manifest says 2100"),
    "set-user-id": (set_field(FIRST, mode=0o4755), "does not write"),
    "another owner": (set_field(FIRST, uid=1000, uname="alice"), "does not write"),
    "another time": (set_field(FIRST, mtime=1), "does not write"),
    "changed list of parts": (replace_data("bundle.sbom.json", b"{}"), "no trusted key"),
    "changed manifest": (replace_data("bundle.json", b"{}"), "cannot be read"),
    "another contract": (edit_text("bundle.json", b'"RGB"', b'"BGR"'), "no trusted key"),
    "another history": (edit_text("bundle.json", b'"seed": 1', b'"seed": 2'), "no trusted key"),
    "deep manifest": (replace_data("bundle.json", b"[" * 100_000), "cannot be read"),
    "damaged signatures": (replace_data(SIGNATURES, b'{"schema": 1, "signatures": 3}'), "cannot be read"),
    "deep signatures": (replace_data(SIGNATURES, b"[" * 100_000), "cannot be read"),
    "newer signatures": (replace_data(SIGNATURES, b'{"schema": 2, "signatures": []}'), "schema 2"),
    "no signatures": (lambda rows: rows.pop(2) and None, "is not signed"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(
    name: str, made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    file, key = made
    change, match = HOSTILE[name]
    edited = edit(file, tmp_path / "b.frb", change)
    refuse(edited, key, match, allow_unsigned=False)
    if match not in ("is not signed", "no trusted key"):  # it is hostile whoever signs it
        refuse(edited, key, match)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_refused_before_they_are_read(
    format: int, made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    """Python's reader would take a name or a comment of any length into memory."""
    file, key = made
    long = tarfile.TarInfo("engines/" + "n" * 300)
    edited = edit(file, tmp_path / "b.frb", insert(FIRST, (long, b"")), format=format)
    refuse(edited, key, "of a kind|does not write")
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = tarfile.XHDTYPE, 7 << 30
    (tmp_path / "c.frb").write_bytes(bomb.tobuf(tarfile.USTAR_FORMAT) + bytes(10_000))
    refuse(tmp_path / "c.frb", key, "of a kind")


def test_a_manifest_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    for size, match in ((1 << 40, "cannot hold"), (8 << 30, "cannot hold"), (-1, "cannot hold"),
                        ((8 << 30) - 1, "was cut|is cut|cut off")):  # fmt: skip
        root = write_bundle(tmp_path / "a.bundle")
        pack(root, tmp_path / "a.frb")
        entry = {"role": "x", "sha256": "0" * 64, "size": size}

        def claim(rows: list[Member], entry: dict[str, object] = entry) -> None:
            manifest = json.loads(rows[0][1])
            manifest["files"] = {"model.onnx": entry}
            rows[:] = [member("bundle.json", json.dumps(manifest).encode()), rows[1]]
            if 0 < int(str(entry["size"])) < 8 << 30:
                info = tarfile.TarInfo("model.onnx")
                info.mode = 0o644
                rows.append((info, b""))

        edited = edit(tmp_path / "a.frb", tmp_path / "b.frb", claim)
        data = bytearray(edited.read_bytes())
        place = data.find(b"model.onnx\x00")
        if place > 0:  # a header of 8 GiB, and nothing behind it
            info = tarfile.TarInfo("model.onnx")
            info.size, info.mode = size, 0o644
            data[place : place + 512] = info.tobuf(tarfile.USTAR_FORMAT)
        edited.write_bytes(data)
        refuse(edited, key, match)
        shutil.rmtree(root)


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    for pair in (
        ("Model.onnx", "model.onnx"),
        ("e\u0301", "\u00e9"),
        ("a", "a/b"),
        ("BUNDLE.json",),
    ):
        root = tmp_path / "a.bundle"
        write_bundle(root, {"model.onnx": b"1"})
        pack(root, tmp_path / "a.frb")

        def claim(rows: list[Member], names: tuple[str, ...] = pair) -> None:
            manifest = json.loads(rows[0][1])
            entry = manifest["files"]["model.onnx"]
            manifest["files"] = dict.fromkeys(names, entry)
            rows[:] = [member("bundle.json", json.dumps(manifest).encode()), rows[1]]
            rows += [member(name, b"1") for name in sorted(names)]

        edited = edit(tmp_path / "a.frb", tmp_path / "b.frb", claim)
        refuse(edited, key, "where case is ignored|both a file and the folder")
        shutil.rmtree(root)


def test_every_cut_is_seen(made: tuple[Path, SigningKey], tmp_path: Path) -> None:
    file, key = made
    data = file.read_bytes()
    cut = tmp_path / "cut.frb"
    for size in (0, 1, 511, 512, 513, *range(1024, len(data), 997), len(data) - 1):
        cut.write_bytes(data[:size])
        refuse(cut, key, "cut off|not a pack|does not end")
    cut.write_bytes(data + b"\x00")
    refuse(cut, key, "does not end")
    cut.write_bytes(data[:-1] + b"x")
    refuse(cut, key, "does not end")


def test_every_changed_byte_is_seen(made: tuple[Path, SigningKey], tmp_path: Path) -> None:
    """With the signature required; one bit, in places all over the file."""
    file, key = made
    data = file.read_bytes()
    changed = tmp_path / "changed.frb"
    for place in range(0, len(data), 307):
        spoiled = bytearray(data)
        spoiled[place] ^= 1
        changed.write_bytes(spoiled)
        refuse(changed, key, ".", allow_unsigned=False)


def test_what_is_not_a_pack(tmp_path: Path, made: tuple[Path, SigningKey]) -> None:
    file, key = made
    place = tmp_path / "x.frb"
    place.write_bytes(gzip.compress(file.read_bytes()))
    refuse(place, key, "is compressed")
    place.write_bytes(os.urandom(20_000))
    refuse(place, key, "not a pack")
    place.unlink()
    os.mkfifo(place)
    refuse(place, key, "a named pipe, expected a regular file")
    with pytest.raises(BundleError, match="a device, expected a regular file"):
        unpack("/dev/zero", tmp_path / "out", keys_of(key))
    with pytest.raises(BundleError, match="cannot be read"):
        unpack(tmp_path / "nothing.frb", tmp_path / "out", keys_of(key))


def test_the_signature_of_another_key_is_none(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    file, key = made
    stranger = make_key(tmp_path, "stranger")
    shutil.copy(file, tmp_path / "a.frb")
    refuse(tmp_path / "a.frb", stranger, "no trusted key", allow_unsigned=False)
    done = unpack(tmp_path / "a.frb", tmp_path / "out", keys_of(stranger), allow_unsigned=True)
    assert done.signed_by == ()
    both = unpack(tmp_path / "a.frb", tmp_path / "both", keys_of(stranger, key))
    assert both.signed_by == (f"maker ({key.public.fingerprint})",)


def test_a_signature_is_not_moved_to_another_bundle_or_key(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    file, key = made
    stranger = make_key(tmp_path, "stranger")
    pack(write_bundle(tmp_path / "o.bundle", {**FILES, "empty": b"full"}), tmp_path / "o.frb")
    signatures = next(data for info, data in _rows(file) if info.name == SIGNATURES)
    moved = edit(
        tmp_path / "o.frb", tmp_path / "m.frb", insert(FIRST, member(SIGNATURES, signatures))
    )
    refuse(moved, key, "no trusted key", allow_unsigned=False)
    claimed = json.loads(signatures)
    claimed["signatures"][0]["key"] = base64.b64encode(stranger.public.raw).decode()
    forged = replace_data(SIGNATURES, json.dumps(claimed).encode())
    refuse(edit(file, tmp_path / "f.frb", forged), stranger, "does not hold")
    claimed = json.loads(signatures)
    claimed["signatures"][0]["statement"] = claimed["signatures"][0]["statement"].replace("8", "9")
    forged = replace_data(SIGNATURES, json.dumps(claimed).encode())
    refuse(edit(file, tmp_path / "g.frb", forged), key, "does not hold")


def _rows(file: Path) -> list[Member]:
    rows: list[Member] = []
    edit(file, file.with_name("unused.tar"), rows.extend)
    return rows


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_is_there_stays_unless_it_is_replaced(
    exchanged: bool, made: tuple[Path, SigningKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a file system that cannot exchange two folders."""
    if not exchanged:
        monkeypatch.setattr("fr_edge.bundle.draft_folder.exchange", lambda *_: False)
    file, key = made
    keys = keys_of(key)
    out = write_bundle(tmp_path / "out", {"old": b"old"})
    before = content(out)
    with pytest.raises(UsageError, match="exists"):
        unpack(file, out, keys)
    spoiled = edit(file, tmp_path / "b.frb", replace_data("model.onnx", b"weightz" * 300))
    with pytest.raises(BundleError, match="was changed"):
        unpack(spoiled, out, keys, force=True)
    assert content(out) == before
    unpack(file, out, keys, force=True)
    assert set(content(out)) > set(FILES)
    assert "old" not in content(out)
    assert sorted(os.listdir(tmp_path)) == ["b.frb", "out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for place in ("mine", "link", "b.frb"):
        with pytest.raises(UsageError, match="not a bundle"):
            unpack(file, tmp_path / place, keys, force=True)
    with pytest.raises(UsageError, match="no folder"):
        unpack(file, tmp_path / "nowhere" / "x", keys)
    with pytest.raises(UsageError, match="no name"):
        unpack(file, "/", keys, force=True)


def test_two_at_once_and_what_a_killed_one_left(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    file, key = made
    draft, old = tmp_path / ".out.unpack", tmp_path / ".out.replaced"
    draft.mkdir()
    (draft / "half").write_text("half")
    handle = os.open(draft, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(MachineError, match="another command"):
        unpack(file, tmp_path / "out", keys_of(key))
    os.close(handle)
    unpack(file, tmp_path / "out", keys_of(key))
    assert "half" not in content(tmp_path / "out")
    (tmp_path / "out").rename(old)  # killed between the two renames of --force
    with pytest.raises(UsageError, match="exists"):
        unpack(file, tmp_path / "out", keys_of(key))
    assert "model.onnx" in content(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_unpacked_already_is_left_as_it_is(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    """As after a kill behind the last rename: the same command ends as it would have."""
    file, key = made
    out = tmp_path / "out"
    first = unpack(file, out, keys_of(key))
    status = out.stat()
    assert unpack(file, out, keys_of(key)) == first
    with pytest.raises(UsageError, match="exists"):  # not vouched for
        unpack(file, out, ())
    unpack(file, out, (), allow_unsigned=True)
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    (out / "model.onnx").write_bytes(b"changed")
    with pytest.raises(UsageError, match="exists"):
        unpack(file, out, keys_of(key))


def test_a_draft_of_somebody_else_is_not_used(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    """In a folder that all may write: who owns the draft could change the bundle afterwards."""
    file, key = made
    draft = tmp_path / ".out.unpack"
    draft.mkdir()
    draft.chmod(0o777)
    with pytest.raises(UsageError, match="others may write"):
        unpack(file, tmp_path / "out", keys_of(key))
    draft.chmod(0o755)
    if os.getuid() == 0:
        os.chown(draft, 12345, -1)
        with pytest.raises(UsageError, match="others may write"):
            unpack(file, tmp_path / "out", keys_of(key))
        os.chown(draft, 0, -1)
    unpack(file, tmp_path / "out", keys_of(key))


def test_killed_at_any_moment_it_is_whole_or_not_there(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    """A real process, killed at each of its calls that open, sync or rename something."""
    file, key = made
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fr_edge.bundle.keys import PublicKey\n"
        "from fr_edge.bundle.pack import unpack\n"
        "keys = (PublicKey(bytes.fromhex(sys.argv[3])),)\n"
        "before = None\n"
        "def child(limit):\n"
        "    calls = 0\n"
        "    def count(event, args):\n"
        "        nonlocal calls\n"
        "        if event in ('open', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.remove'):\n"
        "            calls += 1\n"
        "            if calls == limit: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    sys.addaudithook(count)\n"
        "    unpack(sys.argv[1], sys.argv[2], keys, force=True)\n"
        "    os._exit(0)\n"
        "unpack(sys.argv[1], sys.argv[2], keys)\n"
        "os.remove(Path(sys.argv[2]) / 'empty')\n"
        "for limit in range(1, 200):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: child(limit)\n"
        "    status = os.waitpid(pid, 0)[1]\n"
        "    names = {f.name for f in Path(sys.argv[2]).rglob('*') if f.is_file()}\n"
        "    print(os.WIFSIGNALED(status), len(names), 'bundle.json' in names, 'empty' in names)\n"
        "    if not os.WIFSIGNALED(status): break\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), str(tmp_path / "out"), key.public.raw.hex()],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 20, done.stderr
    files = int(lines[-1][1])
    for _, count, whole, new in lines:  # the old bundle or the new one, under its name
        assert (int(count), whole) == (files if new == "True" else files - 1, "True")
    assert [line[0] for line in lines] == ["True"] * (len(lines) - 1) + ["False"]
    assert {line[3] for line in lines} == {"False", "True"}
    assert lines[-1] == ["False", str(files), "True", "True"]
    assert os.listdir(tmp_path) == ["out"]


def test_ctrl_c_leaves_nothing(made: tuple[Path, SigningKey], tmp_path: Path) -> None:
    """While it waits for data; a signal of the system, in a real process."""
    file, key = made
    code = (
        "import sys, time\n"
        "from fr_edge.bundle.keys import PublicKey\n"
        "from fr_edge.bundle import pack\n"
        "class Slow(pack.PackReader):\n"
        "    def copy(self, *args):\n"
        "        print('reading', flush=True)\n"
        "        time.sleep(60)\n"
        "pack.PackReader = Slow\n"
        "pack.unpack(sys.argv[1], sys.argv[2], [PublicKey(bytes.fromhex(sys.argv[3]))])\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(tmp_path / "out"), key.public.raw.hex()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "reading\n"
    assert os.listdir(tmp_path) == [".out.unpack"]
    time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in program.communicate()[1]
    assert os.listdir(tmp_path) == []


def test_the_writer_of_tests_makes_what_pack_makes(
    made: tuple[Path, SigningKey], tmp_path: Path
) -> None:
    """Else the tests above would refuse their own tar, not the hostile one."""
    file, key = made
    assert edit(file, tmp_path / "b.frb", lambda rows: None).read_bytes() == file.read_bytes()
    assert write_tar(tmp_path / "c.frb", _rows(file)).read_bytes() == file.read_bytes()
    first = unpack(tmp_path / "b.frb", tmp_path / "out", keys_of(key))
    assert unpack(tmp_path / "c.frb", tmp_path / "out", keys_of(key)) == first


def test_a_large_manifest_is_not_taken_into_memory(
    made: tuple[Path, SigningKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = made
    padded = edit(file, tmp_path / "b.frb", replace_data("bundle.json", b" " * 1_500_000))
    monkeypatch.setenv("FR_EDGE_MAX_JSON_MB", "1")
    refuse(padded, key, r"bundle\.json is larger than 1 MB")
