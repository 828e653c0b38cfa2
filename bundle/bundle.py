"""The bundle: the directory that travels from stage to stage, and how it changes.

A change is all or nothing. Files are written into a hidden draft folder; one rename of the journal
is the moment of truth; whoever opens the bundle next finishes what the journal says. So a killed
command leaves the old bundle or the new one.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import BundleError, MachineError, UsageError
from ..faces.contract import InputSpec
from ..files import sha256, sync, write_atomic
from .manifest import MANIFEST, SCHEMA, Bundle, FileEntry, inside, read_manifest

_JOURNAL = "bundle.next.json"

_DRAFT = ".draft"


@dataclass
class Transaction:
    """A change being written; see `change`."""

    root: Path
    roles: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    spec: InputSpec | None = None
    embedding_dim: int | None = None

    def path(self, name: str, role: str) -> Path:
        """Where to write the file that will be `name` in the bundle."""
        self.roles[name] = role
        target = self.root / _DRAFT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def drop(self, *prefixes: str) -> None:
        """Forget what the new files make stale: paths that start with any of `prefixes`."""
        self.dropped.extend(prefixes)


def open_bundle(root: str | Path, *, check: bool = True) -> Bundle:
    """Read a bundle; with `check`, every file's size and sha256 too.

    Raises BundleError when it is none, is of a newer schema, or a file is missing or changed.
    """
    root = Path(root)
    if (root / _JOURNAL).exists():
        with _locked(root):
            _finish(root)
    bundle = read_manifest(root)
    if check:
        for problem in problems(bundle):
            raise BundleError(problem, "restore the file, or run the stage that made it again")
    return bundle


def problems(bundle: Bundle) -> Iterator[str]:
    """One sentence for each file that is missing or is not what the manifest says."""
    for name, entry in bundle.files.items():
        path = bundle.root / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != entry.size or sha256(path) != entry.sha256:
            yield f"{path} was changed: its sha256 is not the manifest's {entry.sha256[:12]}..."


@contextmanager
def transaction(root: str | Path, stage: str, options: Mapping[str, Any]) -> Iterator[Transaction]:
    """Write files into a bundle (made if it does not exist); all of them arrive, or none.

    A new bundle needs `draft.spec` and `draft.embedding_dim`. On an exception, Ctrl-C or a full
    disk the bundle stays as it was. Raises BundleError if `root` is something else, MachineError
    if another command is writing here.
    """
    root = Path(root)
    made = _make_root(root)
    try:
        with _locked(root):
            _finish(root)
            old = read_manifest(root) if _is_bundle(root) else None
            shutil.rmtree(root / _DRAFT, ignore_errors=True)
            (root / _DRAFT).mkdir()
            draft = Transaction(root)
            try:
                yield draft
                _commit(draft, old, stage, options)
            finally:
                if not (root / _JOURNAL).exists():  # else its files are still to be put in place
                    shutil.rmtree(root / _DRAFT, ignore_errors=True)
    finally:
        if made and not any(root.iterdir()):
            root.rmdir()


def _is_bundle(root: Path) -> bool:
    return (root / MANIFEST).exists() or (root / _JOURNAL).exists()


def _make_root(root: Path) -> bool:
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; a bundle is a folder", "choose another --out")
    if root.is_dir():
        foreign = [p.name for p in root.iterdir() if p.name not in (_DRAFT, "checkpoint")]
        if foreign and not _is_bundle(root):
            raise UsageError(
                f"{root} is a folder with other things in it ({foreign[0]}, ...), not a bundle",
                "choose a new folder for --out",
            )
        return False
    root.mkdir(parents=True)
    return True


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MachineError(
                f"another command is writing {root}", "wait for it, then run this again"
            ) from error
        yield
    finally:
        os.close(handle)


def _commit(draft: Transaction, old: Bundle | None, stage: str, options: Mapping[str, Any]) -> None:
    spec = draft.spec or (old.spec if old else None)
    dim = draft.embedding_dim or (old.embedding_dim if old else None)
    if spec is None or dim is None:
        raise ValueError("a new bundle needs draft.spec and draft.embedding_dim")
    kept = (
        {n: e for n, e in old.files.items() if not n.startswith(tuple(draft.dropped))}
        if old
        else {}
    )
    files = dict(kept)
    for name, role in draft.roles.items():
        path = draft.root / _DRAFT / name
        sync(path)
        files[name] = FileEntry(role, sha256(path), path.stat().st_size)
    entry: dict[str, Any] = {
        "stage": stage,
        "version": __version__,
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "options": dict(options),
    }
    if draft.summary:
        entry["summary"] = draft.summary
    manifest = {
        "schema": SCHEMA,
        "input": spec.to_json(),
        "embedding_dim": dim,
        "files": {name: vars(files[name]) for name in sorted(files)},
        "history": [*(old.history if old else ()), entry],
    }
    gone = sorted(set(old.files) - set(files)) if old else []
    # All that takes space is written before the journal: what it asks for are renames.
    write_atomic(draft.root / _DRAFT / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    journal = {"arrived": [*sorted(draft.roles), MANIFEST], "gone": gone}
    write_atomic(draft.root / _JOURNAL, json.dumps(journal).encode())
    _finish(draft.root)


def _finish(root: Path) -> None:
    """Do what the journal says, if there is one; safe to repeat, under the lock."""
    if not (root / _JOURNAL).exists():
        return
    try:
        journal = json.loads((root / _JOURNAL).read_text(encoding="utf-8"))
        arrived = [inside(name) for name in journal["arrived"]]
        gone = [inside(name) for name in journal["gone"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{root / _JOURNAL} is damaged: {error}") from error
    for name in arrived:
        source = root / _DRAFT / name
        if source.exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            source.replace(root / name)
    for name in gone:
        (root / name).unlink(missing_ok=True)
    sync(root)
    (root / _JOURNAL).unlink(missing_ok=True)
