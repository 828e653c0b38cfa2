"""A bundle of unknown origin changes nothing outside itself, and reading one changes nothing at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, problems, transaction
from fr_edge.bundle.manifest import inside
from fr_edge.errors import BundleError, FrEdgeError, MachineError
from fr_edge.faces.contract import InputSpec


def write(root: Path, **files: str) -> None:
    with transaction(root, "test", {}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        for name, text in files.items():
            change.path(name.replace("__", "/"), "test").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "a.bundle", one="1", reports__two="2")
    return tmp_path / "a.bundle"


def journal(root: Path, **content: object) -> None:
    """What an archive could bring along: a decided change that was not decided here."""
    (root / ".draft").mkdir()
    (root / ".draft" / "one").write_text("theirs")
    text = json.dumps({"arrived": ["one"], "gone": [], "owner": [0, 1, 2], **content})
    (root / "bundle.next.json").write_text(text)


def test_a_foreign_journal_is_neither_read_nor_replayed(root: Path) -> None:
    journal(root)
    assert open_bundle(root, check="all").file("one").read_text() == "1"
    assert (root / ".draft" / "one").exists()
    with pytest.raises(BundleError, match="not interrupted here"):
        write(root, three="3")
    assert (root / "one").read_text() == "1"


def test_a_journal_without_its_staged_files_is_foreign(root: Path) -> None:
    journal(root, arrived=[], gone=["one"])
    shutil.rmtree(root / ".draft", ignore_errors=True)
    assert open_bundle(root, check="all").files
    with pytest.raises(BundleError, match="not interrupted here"), transaction(root, "x", {}):
        pass
    assert (root / "one").exists()


def test_a_copy_of_an_interrupted_bundle_is_foreign(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fr_edge.bundle.bundle.replay_journal", lambda root: None)
        write(root, one="new")
    assert open_bundle(root, check="all").file("one").read_text() == "new"
    shutil.copytree(root, tmp_path / "copy.bundle")
    assert open_bundle(tmp_path / "copy.bundle", check="all").file("one").read_text() == "1"


def test_a_journal_through_links_is_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "two").write_text("mine")
    shutil.rmtree(root / "reports")
    (root / "reports").symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(root).file("reports/two")
    assert any("is a link" in problem for problem in problems(open_bundle(root)))
    with pytest.raises(BundleError, match="is a link"):
        write(root, reports__two="theirs")
    with pytest.raises(BundleError, match="is a link"), transaction(root, "test", {}) as change:
        change.remove("reports/")
    assert (outside / "two").read_text() == "mine"
    assert os.listdir(outside) == ["two"]


def test_a_linked_staging_folder_is_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (root / ".draft").symlink_to(outside)
    with pytest.raises(BundleError, match="not a folder of fr-edge"):
        write(root, three="3")
    assert os.listdir(outside) == ["mine"]


def test_a_linked_file_is_not_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1")  # the same bytes: the hash alone would hold
    (root / "one").unlink()
    (root / "one").symlink_to(secret)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(root).file("one")


@pytest.mark.parametrize(
    "name",
    ["", "/etc/x", "../x", "a/../../x", ".draft/x", "a/.hidden", "bundle.json", "bundle.next.json",
     "a\x1b[2J", "a\n", "a//b", "./a"],
)  # fmt: skip
def test_names_that_a_bundle_may_not_hold(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="bundle"):
        inside(name)
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"][name] = manifest["files"]["one"]
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        open_bundle(root)


@pytest.mark.parametrize(
    ("key", "value"),
    [("files", []), ("files", {"one": 3}), ("files", {"one": {"role": 1}}), ("history", "x"),
     ("history", [3]), ("history", [{}]), ("history", [{"stage": "export", "options": 3}]),
     ("history", [{"stage": "export", "stale": ["x"]}]), ("embedding_dim", "x"), ("embedding_dim", [1]), ("input", 3),
     ("schema", None), ("schema", [1])],
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_refused_in_a_sentence(
    root: Path, key: str, value: object
) -> None:
    manifest = json.loads((root / "bundle.json").read_text())
    manifest[key] = value
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(FrEdgeError):
        open_bundle(root)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "3", "\udcff", '{"arrived": 3}'])
def test_deep_or_damaged_json_is_refused_in_a_sentence(root: Path, text: str) -> None:
    (root / "bundle.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        open_bundle(root)
    (root / "bundle.next.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        write(root, three="3")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_rolls_back(root: Path) -> None:
    (root / "reports").chmod(0o500)
    try:
        with pytest.raises(MachineError, match="cannot be written"):
            write(root, reports__two="new", one="new")
    finally:
        (root / "reports").chmod(0o700)
    assert open_bundle(root, check="all").file("one").read_text() == "1"


def test_another_file_system_is_refused_before_the_commit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == root.stat().st_dev:
        pytest.skip("this machine has no second file system to try")
    real = Path.stat

    def elsewhere(self: Path, **kind: bool) -> os.stat_result:
        return real(shm) if self.name == "engines" else real(self, **kind)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", elsewhere)
        with pytest.raises(MachineError, match="another file system"):
            write(root, engines__x="new", one="new")
    assert open_bundle(root, check="all").file("one").read_text() == "1"
    write(root, three="3")


# Lost updates: what a stage made of earlier files.


def test_an_artefact_of_a_replaced_file_is_refused(root: Path) -> None:
    write(root, **{"model.onnx": "old"})
    base = open_bundle(root)
    write(root, **{"model.onnx": "new"})
    with (
        pytest.raises(BundleError, match=r"model\.onnx was replaced while"),
        transaction(base, "calibrate", {}) as change,
    ):
        change.path("calibration.json", "test").write_text("{}")
    assert "calibration.json" not in open_bundle(root)


def test_a_report_on_a_replaced_file_lands_as_stale(root: Path) -> None:
    from fr_edge.bundle.derived import stale_reports

    write(root, **{"model.onnx": "old"})
    base = open_bundle(root)
    write(root, **{"model.onnx": "new"})
    with transaction(base, "verify", {}) as change:
        change.path("reports/verify.json", "test", of=["model.onnx"]).write_text("{}")
    assert stale_reports(open_bundle(root))["reports/verify.json"] == "model.onnx has changed since"


def test_a_second_writer_waits_for_the_first(root: Path) -> None:
    code = (
        "import sys, time; from fr_edge.bundle.bundle import transaction\n"
        "with transaction(sys.argv[1], 'slow', {}) as change:\n"
        "    change.path('slow', 'test').write_text('1')\n"
        "    print('in', flush=True); time.sleep(1)"
    )
    slow = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    assert slow.stdout is not None
    assert slow.stdout.readline() == b"in\n"
    write(root, fast="2")
    slow.communicate()
    assert slow.returncode == 0
    assert {"slow", "fast"} <= set(open_bundle(root, check="all").files)


def test_killed_in_its_first_change_the_same_command_runs_again(tmp_path: Path) -> None:
    root = tmp_path / "a.bundle"
    code = (
        "import os, signal, sys; from fr_edge.bundle import bundle as module\n"
        "module.replay_journal = lambda root: None\n"
        "from fr_edge.faces.contract import InputSpec\n"
        "real = module.write_atomic\n"
        "def die(path, data):\n"
        "    real(path, data)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "module.write_atomic = die\n"
        "with module.transaction(sys.argv[1], 'x', {}) as change:\n"
        "    change.spec, change.embedding_dim = InputSpec(), 8\n"
        "    change.path('one', 'test').write_text('1')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    assert sorted(os.listdir(root)) == [".draft"]
    write(root, one="1")
    assert open_bundle(root, check="all").file("one").read_text() == "1"


def test_names_too_long_for_a_file_system(tmp_path: Path) -> None:
    """Asking for such a file is an error of the system, not a missing file."""
    assert inside("reports/" + "a" * 200) == "reports/" + "a" * 200
    for name in ("a" * 300, "\u00e9" * 200, "/".join(["a" * 100] * 3)):
        with pytest.raises(ValueError, match="is longer than 240"):
            inside(name)
