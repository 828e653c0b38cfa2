"""A bundle changes whole or not at all, and says when it is not what it was."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, problems, transaction
from fr_edge.errors import BundleError, MachineError, UsageError
from fr_edge.faces.contract import InputSpec
from fr_edge.files import sha256, write_atomic


def make(root: Path, **files: str) -> None:
    with transaction(root, "export", {"seed": 1}) as draft:
        draft.spec, draft.embedding_dim = InputSpec(), 8
        for name, text in files.items():
            draft.path(name, "test").write_text(text)


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def fail_in_a_change(root: Path, error: type[BaseException]) -> None:
    with transaction(root, "again", {}) as draft:
        draft.remove("one")
        draft.path("two", "test").write_text("2")
        raise error


def test_a_change_arrives_with_hashes_and_history(tmp_path: Path) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1", two="22")
    bundle = open_bundle(root)
    assert bundle.embedding_dim == 8
    assert bundle.files["two"].size == 2
    assert bundle.files["two"].sha256 == sha256(root / "two")
    assert [entry["stage"] for entry in bundle.history] == ["export"]
    assert bundle.history[0]["options"] == {"seed": 1}
    assert sorted(content(root)) == ["bundle.json", "one", "two"]


def test_dropped_files_go_when_the_new_ones_come(tmp_path: Path) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1", two="2")
    with transaction(root, "again", {}) as draft:
        draft.remove("o")
        draft.path("engines/three", "test").write_text("3")
    assert set(open_bundle(root).files) == {"two", "engines/three"}
    assert not (root / "one").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_bundle_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1")
    before = content(root)
    with pytest.raises(error):
        fail_in_a_change(root, error)
    assert content(root) == before


def test_a_first_change_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "a.bundle"
    with pytest.raises(RuntimeError):
        fail_in_a_change(root, RuntimeError)
    assert not root.exists()


# Every system call that changes the disk is a place to be killed at; `kill -9` cannot be caught.
# Each change is a fork of one process, so that Python and the package start once.
KILLED = """
import os, signal, sys
from fr_edge.bundle.bundle import transaction

def die_at(root, left):
    def hook(event, args):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree") and root in str(args[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def change(root):
    with transaction(root, "again", {}) as draft:
        draft.remove("one")
        draft.path("two", "test").write_text("new")
        draft.path("deep/three", "test").write_text("new")

for moment, root in enumerate(sys.argv[1:]):
    child = os.fork()
    if child == 0:
        try:
            die_at(root, moment)
            change(root)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
    if code == 0:
        break
"""


def test_killed_at_any_moment_it_is_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    seen, roots = set(), [tmp_path / f"{moment}.bundle" for moment in range(60)]
    for root in roots:
        make(root, one="old", two="old")
    command = [sys.executable, "-c", KILLED, *map(str, roots)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *codes, last = map(int, done.stdout.split())
    assert set(codes) == {-signal.SIGKILL}, done.stderr
    assert last == 0, "the change never ended"
    assert len(codes) > 20
    for moment, root in enumerate(roots[: len(codes) + 1]):
        bundle = open_bundle(root, check="all")
        texts = {name: bundle.file(name).read_text() for name in bundle.files}
        old, new = {"one": "old", "two": "old"}, {"two": "new", "deep/three": "new"}
        assert texts in (old, new), moment
        seen.add("old" if texts == old else "new")
        with transaction(root, "after", {}) as draft:  # and it is not stuck
            draft.path("four", "test").write_text("4")
    assert seen == {"old", "new"}


def test_a_disk_that_fills_up_at_the_last_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is written, and then a rename fails: readers see the change, a writer ends it."""
    root = tmp_path / "a.bundle"
    make(root, one="1")
    real = Path.replace

    def full(self: Path, target: Path) -> Path:
        if self.name == "two":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            make(root, two="2")
    before = content(root)
    bundle = open_bundle(root, check="all")
    assert set(bundle.files) == {"one", "two"}
    assert bundle.file("two").read_text() == "2"
    assert content(root) == before  # reading never writes
    with transaction(root, "after", {}) as draft:
        draft.path("three", "test").write_text("3")
    assert (root / "two").read_text() == "2"
    assert sorted(content(root)) == ["bundle.json", "one", "three", "two"]


def test_two_writers_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_edge.bundle.bundle._LOCK_WAIT_S", 0.3)
    root = tmp_path / "a.bundle"
    make(root, one="1")
    with (
        transaction(root, "first", {}) as draft,
        pytest.raises(MachineError, match="another command"),
        transaction(root, "second", {}),
    ):
        draft.path("two", "test").write_text("2")


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1", two="2")
    (root / "one").write_text("3")  # as long as before
    with pytest.raises(BundleError, match="one was changed"):
        open_bundle(root, check="all")
    bundle = open_bundle(root)  # hashes a file when it is asked for
    assert bundle.file("two").read_text() == "2"
    with pytest.raises(BundleError, match="one was changed"):
        bundle.file("one")
    (root / "two").unlink()
    assert len(list(problems(open_bundle(root, check="manifest")))) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1}', "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1")
    (root / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=said):
        open_bundle(root)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_a_manifest_cannot_point_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "a.bundle"
    make(root, one="1")
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"][name] = manifest["files"]["one"]
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside"):
        open_bundle(root)


def test_what_is_no_bundle_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="other things"), transaction(tmp_path, "export", {}):
        pass
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is a file"), transaction(file, "export", {}):
        pass
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(tmp_path / "nowhere")


def test_write_atomic_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert content(tmp_path) == {"a": b"2"}
    assert os.listdir(tmp_path) == ["a"]
