"""Open a bundle, and change it atomically.

Commits are atomic: files are staged in a hidden folder, a journal is renamed into place, and an
interrupted commit is replayed on the next open. A killed command leaves the old bundle or the new
one.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._version import __version__
from ..documents import encode_json
from ..errors import BundleError, MachineError, UsageError
from ..faces.contract import InputSpec
from ..files import sha256, sync, write_atomic
from .derived import removed_by, sources_of, stale_files, with_sources
from .manifest import (
    MANIFEST,
    SCHEMA,
    Bundle,
    Check,
    FileEntry,
    file_problem,
    inside,
    read_manifest,
)

logger = logging.getLogger(__name__)

_JOURNAL = "bundle.next.json"
_DRAFT = ".draft"


@dataclass
class Transaction:
    """A change being written; see `transaction`.

    Attributes:
        root: The bundle's folder.
        spec: The input contract; needed for a new bundle, else the old one stays.
        embedding_dim: Numbers per embedding; needed for a new bundle.
        summary: What the history says about this stage.
    """

    root: Path
    spec: InputSpec | None = None
    embedding_dim: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    _roles: dict[str, str] = field(default_factory=dict)
    _of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _removed: list[str] = field(default_factory=list)

    def path(self, name: str, role: str, of: Iterable[str] = ()) -> Path:
        """Where to write the file that will be `name` in the bundle.

        Args:
            name: Path relative to the bundle.
            role: What the file is, in words.
            of: Files of the bundle that it is made of or judges, besides those that
                `derived.MADE_OF` names; the manifest records their sha256.
        """
        self._roles[name] = role
        self._of[name] = tuple(of)
        target = self.root / _DRAFT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def remove(self, *prefixes: str) -> None:
        """Remove files that this change replaces or contradicts.

        Files made of what this change writes need no mention: `derived.MADE_OF` covers them.

        Args:
            *prefixes: Beginnings of paths relative to the bundle.
        """
        self._removed.extend(prefixes)


def open_bundle(root: str | Path, *, check: Check = "used") -> Bundle:
    """Open a bundle.

    Args:
        root: The bundle's folder.
        check: "manifest" reads the manifest alone; "used" hashes each file when it is first asked
            for; "all" hashes every file now.

    Raises:
        BundleError: There is no bundle, its schema is newer, or a checked file is missing or
            changed.
    """
    root = Path(root)
    if (root / _JOURNAL).exists():
        with _locked(root):
            _finish(root)
    bundle = read_manifest(root, check)
    if check == "all":
        for problem in problems(bundle):
            raise BundleError(problem, "restore the file, or run the stage that made it again")
    return bundle


def problems(bundle: Bundle) -> Iterator[str]:
    """One sentence for each file that is missing or has other bytes than the manifest says.

    Args:
        bundle: An open bundle; all of its files are hashed.
    """
    for name in bundle.files:
        if problem := file_problem(bundle, name):
            yield problem


@contextmanager
def transaction(root: str | Path, stage: str, options: Mapping[str, Any]) -> Iterator[Transaction]:
    """Write files into a bundle: all of them arrive, or none.

    The folder is made if it does not exist; a new bundle needs `spec` and `embedding_dim`. On an
    exception, Ctrl-C or a full disk the bundle stays as it was. Files that were made of what the
    change replaces are removed, reports about it are kept; both are logged.

    Args:
        root: The bundle's folder.
        stage: The stage's name, for the history.
        options: The stage's options, for the history; JSON types.

    Yields:
        The `Transaction` to write into.

    Raises:
        UsageError: `root` is a file, or a folder with other things in it.
        BundleError: The bundle there is damaged.
        MachineError: Another command is writing into this bundle.
    """
    root = Path(root)
    created = _make_root(root)
    try:
        with _locked(root):
            _finish(root)
            old = read_manifest(root) if _is_bundle(root) else None
            shutil.rmtree(root / _DRAFT, ignore_errors=True)
            (root / _DRAFT).mkdir()
            change = Transaction(root)
            try:
                yield change
                _commit(change, old, stage, options)
            finally:
                if not (root / _JOURNAL).exists():  # else its files are still to be moved
                    shutil.rmtree(root / _DRAFT, ignore_errors=True)
    finally:
        if created and not any(root.iterdir()):
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
    import fcntl  # not on Windows, where the command line refuses to start

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


def _commit(
    change: Transaction, old: Bundle | None, stage: str, options: Mapping[str, Any]
) -> None:
    spec = change.spec or (old.spec if old else None)
    dim = change.embedding_dim or (old.embedding_dim if old else None)
    if spec is None or dim is None:
        raise ValueError("a new bundle needs spec and embedding_dim")
    files = _entries(change, old)
    entry: dict[str, Any] = {
        "stage": stage,
        "version": __version__,
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "options": dict(options),
    }
    if change.summary:
        entry["summary"] = change.summary
    manifest = {
        "schema": SCHEMA,
        "input": spec.to_json(),
        "embedding_dim": dim,
        "files": {name: files[name] for name in sorted(files)},
        "history": [*(old.history if old else ()), entry],
    }
    gone = sorted(set(old.files) - set(files)) if old else []
    # All that takes space is written before the journal: what it asks for are renames.
    write_atomic(change.root / _DRAFT / MANIFEST, encode_json(manifest, indent=2))
    journal = {"arrived": [*sorted(change._roles), MANIFEST], "gone": gone}
    write_atomic(change.root / _JOURNAL, json.dumps(journal).encode())
    _finish(change.root)


def _entries(change: Transaction, old: Bundle | None) -> dict[str, FileEntry]:
    """The manifest's entries after the change, and a log line for what it makes stale."""
    before = with_sources(old.files) if old else {}
    files = {n: e for n, e in before.items() if not n.startswith(tuple(change._removed))}
    for name, role in change._roles.items():
        path = change.root / _DRAFT / name
        sync(path)
        files[name] = FileEntry(role, sha256(path), path.stat().st_size)
    for name, of in change._of.items():
        sources = [*sources_of(name), *of]
        hashes = {source: files[source].sha256 for source in sources if source in files}
        files[name] = replace(files[name], of=hashes)
    removed = removed_by(files, change._roles)
    for name in removed:
        del files[name]
    if removed:
        logger.info("removed, because what they were made of changed: %s", ", ".join(removed))
    stale = sorted(set(stale_files(files)) - set(stale_files(before)))
    if stale:
        logger.info("kept, but they judge earlier files: %s", ", ".join(stale))
    return files


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
