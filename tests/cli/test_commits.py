"""Commits of the real commands, killed at every call that touches the disk, and where the disk fails."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kernel_choice import all_in_float

from fr_edge.bundle import bundle as module
from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.cli.main import run
from fr_edge.errors import BundleError

PEOPLE = "synthetic:12x3@9"
CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
# Every sixth call keeps the tests short; FR_EDGE_KILL_STEP=1 tries them all.
STEP = int(os.environ.get("FR_EDGE_KILL_STEP", "6"))
TRAINING = [
    "--faces",
    "synthetic:4x4@1",
    "--set",
    "losses=arcface",
    "--set",
    "network=iresnet-tiny",
]
TRAINING += ["--set", "dim=16", "--set", "batch=8", "--set", "epochs=1", "--set", "workers=0"]
TRAINING += ["--set", "verify_identities=0"]
Commit = Callable[..., None]
Captured = pytest.CaptureFixture[str]


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def die_at(root: Path, moment: int) -> None:
    """Kill this process at one of its calls to the disk that concern a bundle, or in an fsync."""
    left, fsync = moment, os.fsync

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in CALLS and str(root) in str(args[0]):
            count()

    def counted_fsync(handle: int) -> None:
        count()
        fsync(handle)

    os.fsync = counted_fsync
    sys.addaudithook(hook)


def killed_commits(real: Commit, change: module.Transaction, *rest: Any) -> set[str]:
    """Do a commit on copies of a bundle, each time killed some calls later, then whole."""
    root, outcomes = change.root, set()
    old = {name: data for name, data in content(root).items() if not name.startswith(".draft/")}
    for moment in range(0, 300, STEP):
        copy = root.with_name("killed.bundle")
        shutil.copytree(root, copy, copy_function=os.link)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # a fork with threads, which ends soon
            child = os.fork()
        if child == 0:
            die_at(copy, moment)
            real(replace(change, root=copy), *rest)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        outcomes.add(judge(copy, old, moment))
        shutil.rmtree(copy)
        if not os.WIFSIGNALED(status):
            return outcomes
    raise AssertionError("the commit never ended")


def judge(root: Path, old: dict[str, bytes], moment: int) -> str:
    """Whether a bundle is whole, and after the next change old or new with nothing left over."""
    before = content(root)
    try:
        whole = {name: bytes_of(root, name) for name in open_bundle(root, check="all").files}
    except BundleError:
        assert old == {}, moment  # there was none, and there is none
        whole = {}
    assert content(root) == before  # reading never writes
    with transaction(root, "after", {}) as change:
        change.spec, change.embedding_dim = module.InputSpec(), 8
        change.path("after", "test").write_text("1")
    after = content(root)
    assert {"after", "bundle.json", *whole} == set(after), moment
    page = "report.html"  # which the next change marks as stale
    assert all(after[n] == data for n, data in whole.items() if n != page), moment
    known = {name: data for name, data in old.items() if name != "bundle.json"}
    return "old" if whole == known else "new"


def bytes_of(root: Path, name: str) -> bytes:
    return open_bundle(root).file(name).read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ["export", "NETWORK", "--preset", "insightface", "--out", "NEW"],
        ["export", "NETWORK", "--preset", "raw", "--force", "--out", "BUNDLE"],
        ["calibrate", "BUNDLE", "--faces", "synthetic:8x2@5"],
        ["build-engine", "BUNDLE", "--int8", "--backend", "onnxruntime"],
        ["verify", "BUNDLE", "--engine", "int8"],
        ["evaluate", "BUNDLE", "--protocol", PEOPLE],
        ["benchmark", "BUNDLE", "--duration", "0.1", "--allow-invalid"],
        ["report", "BUNDLE"],
        ["distill", "tiny", "--out", "NEW", *TRAINING],
    ],
    ids=lambda args: args[0] + ("-new" if "NEW" in args else ""),
)
def test_a_commit_killed_anywhere_is_old_or_new(
    args: list[str], bundle: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if args[0] == "distill":
        pytest.importorskip("torch", reason="training needs torch: pip install 'fr-edge[train]'")
    places = {"BUNDLE": bundle, "NETWORK": network, "NEW": tmp_path / "new.bundle"}
    real, outcomes = module._commit, []

    def commit(change: module.Transaction, *rest: Any) -> None:
        if "after" not in rest:  # the stage of `judge`
            outcomes.append(killed_commits(real, change, *rest))
        real(change, *rest)

    monkeypatch.setattr(module, "_commit", commit)
    with all_in_float():  # the engine that is there has a layer on integer kernels
        assert run([str(places.get(arg, arg)) for arg in args] + ["-q"]) in (0, 1)
    assert outcomes == [{"old", "new"}]


@pytest.mark.parametrize(
    "args", [["verify", "--engine", "int8"], ["evaluate", "--protocol", PEOPLE]], ids=lambda a: a[0]
)
def test_a_result_that_cannot_be_stored_is_printed_all_the_same(
    args: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.1)
    before = content(bundle)
    with suppress(InterruptedError), transaction(bundle, "other", {}):
        assert run([args[0], str(bundle), *args[1:], "--json", "-q"]) == 3
        raise InterruptedError
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["engine"] == "int8"
    assert document["report"] == ""
    assert "the report was not stored: another command is writing" in err
    assert content(bundle) == before


def test_a_result_of_an_engine_that_was_replaced_is_printed_and_not_stored(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Another process builds the engine again, for another machine, while this one judges it."""
    from fr_edge.runtime.evaluation import verify as stage

    real = stage.check_reference

    def meanwhile(*args: Any) -> Any:
        subprocess.run([sys.executable, "-c", REPLACE, str(bundle)], check=True)
        return real(*args)

    monkeypatch.setattr(stage, "check_reference", meanwhile)
    reports = {name for name in content(bundle) if name.startswith("reports/")}
    assert run(["verify", str(bundle), "--engine", "int8", "-q"]) == 4
    out, err = capsys.readouterr()
    assert "cosine: mean" in out
    assert "report:" not in out
    assert "was replaced while it was judged" in err
    assert {name for name in content(bundle) if name.startswith("reports/")} == reports


REPLACE = """
import sys
from fr_edge.bundle.bundle import open_bundle, transaction
bundle = open_bundle(sys.argv[1])
name = next(name for name in bundle.files if "int8" in name and name.endswith(".onnx") and "/" in name)
with transaction(bundle, "build-engine", {}) as change:
    change.path(name, "engine").write_bytes(bundle.file(name).read_bytes() + b"0")
    change.path(name + ".json", "fingerprint").write_bytes(bundle.file(name + ".json").read_bytes())
"""

# Disks that fail, real ones: each in a mount namespace of its own.

DISK = """
import sys
from pathlib import Path
from fr_edge.bundle.bundle import transaction
from fr_edge.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def on_disks(mounts: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with file systems mounted that it alone sees."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    script = f'{mounts}\n"$0" -c "$1" "${{@:2}}"'
    return subprocess.run(
        ["unshare", "-m", "bash", "-ec", script, sys.executable, DISK, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_engines_on_another_file_system(bundle: Path) -> None:
    before = content(bundle)
    mount = f"mount -t tmpfs -o size=8m tmpfs {bundle}/engines"
    done = on_disks(mount, "build-engine", str(bundle), "--int8", "--backend", "onnxruntime", "-q")
    assert done.returncode == 3, done.stderr
    assert "another file system" in done.stderr
    assert content(bundle) == before
    assert not (bundle / ".draft").exists()


def test_a_disk_that_is_really_full(bundle: Path) -> None:
    """The bundle lies on a disk of its own, whose content is listed after the command."""
    before, disk = content(bundle), bundle.parent / "disk"
    disk.mkdir()
    size = sum(-(-len(data) // 4096) * 4 for data in before.values()) + 60
    mount = f"""
        mount -t tmpfs -o size={size}k tmpfs {disk}
        cp -r {bundle} {disk}
        trap 'cd {disk} && find . -type f -exec sha256sum {{}} + && ls -A mini.bundle' EXIT
    """
    target = str(disk / "mini.bundle")
    done = on_disks(mount, "export", str(bundle / "model.onnx"), "--out", target, "-q")
    assert done.returncode == 3, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    listed = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines() if " " in line}
    digests = {f"./mini.bundle/{n}": hashlib.sha256(d).hexdigest() for n, d in before.items()}
    assert listed == digests
    assert ".draft" not in done.stdout


@pytest.mark.parametrize(("first", "second"), [("calibrate", "export"), ("verify", "build-engine")])
def test_two_commands_at_once_leave_a_whole_bundle(
    first: str, second: str, bundle: Path, network: Path, tmp_path: Path
) -> None:
    """A hard link outside has the bytes that it had: a change gives files new names, no new bytes."""
    lines = {
        "calibrate": [str(bundle), "--faces", "synthetic:16x2@6"],
        "export": [str(network), "--preset", "raw", "--out", str(bundle)],
        "verify": [str(bundle), "--engine", "int8"],
        "build-engine": [str(bundle), "--int8", "--backend", "onnxruntime"],
    }
    stages = [entry["stage"] for entry in open_bundle(bundle).history]
    outside = shutil.copytree(bundle, tmp_path / "outside", copy_function=os.link)
    before = content(outside)
    with ThreadPoolExecutor(2) as pool:
        codes = [
            done.result()
            for done in [pool.submit(run, [name, *lines[name], "-q"]) for name in (first, second)]
        ]
    whole = open_bundle(bundle, check="all")
    new = sorted(entry["stage"] for entry in whole.history[len(stages) :])
    assert new == sorted(
        name for name, code in zip((first, second), codes, strict=True) if not code
    )
    assert new, codes
    assert set(codes) <= {0, 4}  # 4: it was replaced while this command ran
    assert {p for p in content(bundle) if p not in whole.files} == {"bundle.json"}
    assert content(outside) == before


def test_a_folder_that_may_not_be_written(bundle: Path) -> None:
    """Root gives up its right to write everywhere."""
    rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and setpriv is not installed")
    before, folders = content(bundle), [bundle, *(p for p in bundle.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = subprocess.run(
            [*(rights if os.geteuid() == 0 else []), sys.executable, "-m", "fr_edge", "verify",
             str(bundle), "--engine", "int8", "-q"],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert "cosine: mean" in done.stdout, done.stderr  # measured all the same
    assert "the report was not stored: " in done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
    assert content(bundle) == before
