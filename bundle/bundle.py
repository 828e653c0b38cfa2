"""Open a bundle, and change it atomically.

Commits are atomic: files are staged in a hidden folder, a journal is renamed into place, and the next
command that writes replays an interrupted commit. A killed command leaves the old bundle or the new
one. Reading never writes: a reader of an interrupted commit looks at the staged files where they are.
"""

import logging
import os
import shutil
import stat
import time
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
from ..interruption import deferred_signals, interrupted
from .derived import (
    PAGE,
    is_report,
    removed_by,
    sources_of,
    stale_files,
    stale_page,
    with_sources,
)
from .journal import JOURNAL, own_journal, replay_journal, write_journal
from .manifest import (
    CHECKPOINTS,
    MANIFEST,
    SCHEMA,
    STAGED,
    Bundle,
    Check,
    FileEntry,
    file_problem,
    read_manifest,
)
from .sbom import loaded_packages
from .trust import ensure_signatures

logger = logging.getLogger(__name__)

_LOCK_WAIT_S = 60.0  # for another command that writes into the same bundle


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
        target = self.root / STAGED / name
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
        BundleError: There is no bundle, its schema is newer, a checked file is missing or changed,
            or signatures are required and do not hold.
    """
    root = Path(root)
    journal = own_journal(root)
    bundle = read_manifest(root, check, frozenset(journal.arrived) if journal else frozenset())
    if check != "manifest":
        bundle = ensure_signatures(bundle)
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
def transaction(
    bundle: Bundle | str | Path, stage: str, options: Mapping[str, Any]
) -> Iterator[Transaction]:
    """Write files into a bundle: all of them arrive, or none.

    The folder is made if it does not exist; a new bundle needs `spec` and `embedding_dim`. On an
    exception, Ctrl-C or a full disk the bundle stays as it was. Files that were made of what the
    change replaces are removed, reports about it are kept; both are logged.

    Args:
        bundle: The bundle's folder, or the bundle as the stage opened it. With the latter a change is
            refused when a file that it is made of was replaced in the meantime; a report lands all
            the same, as one that judges the earlier file.
        stage: The stage's name, for the history.
        options: The stage's options, for the history; JSON types.

    Yields:
        The `Transaction` to write into.

    Raises:
        UsageError: `root` is a file, or a folder with other things in it.
        BundleError: The bundle there is damaged, holds links, or has changed since `bundle` was
            opened.
        MachineError: Another command keeps writing into this bundle, or the folder cannot be
            written.
    """
    base = bundle if isinstance(bundle, Bundle) else None
    root = base.root if base else Path(bundle)  # type: ignore[arg-type]
    created = _make_root(root)
    try:
        with _locked(root):
            replay_journal(root)
            old = read_manifest(root) if _is_bundle(root) else None
            _empty_staging(root)
            change = Transaction(root)
            committed = False
            try:
                yield change
                with deferred_signals():
                    _commit(change, base, old, stage, options)
                    committed = True
            except KeyboardInterrupt as error:
                stop = interrupted(error)
                if committed or not stop.kept:
                    said = "is complete in" if committed else "changed nothing in"
                    raise interrupted(stop, f"{stage} {said} {root}") from error
                raise
            finally:
                if not (root / JOURNAL).exists():  # else its files are still to be moved
                    shutil.rmtree(root / STAGED, ignore_errors=True)
    finally:
        if created and not any(root.iterdir()):
            root.rmdir()


def _is_bundle(root: Path) -> bool:
    return (root / MANIFEST).exists() or (root / JOURNAL).exists()


def _make_root(root: Path) -> bool:
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; a bundle is a folder", "choose another --out")
    if root.is_dir():
        # Folders that were made for a commit which was killed before it was decided are empty.
        own = (STAGED, CHECKPOINTS)
        foreign = [p.name for p in root.iterdir() if p.name not in own and not _is_empty(p)]
        if foreign and not _is_bundle(root):
            raise UsageError(
                f"{root} is a folder with other things in it ({foreign[0]}, ...), not a bundle",
                "choose a new folder for --out",
            )
        return False
    root.mkdir(parents=True)
    return True


def _is_empty(path: Path) -> bool:
    """Whether a path is a folder with nothing but empty folders in it."""
    folders = [path]  # no recursion: a stranger's may be deep
    while folders:
        folder = folders.pop()
        if folder.is_symlink() or not folder.is_dir():
            return False
        folders += folder.iterdir()
    return True


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where the command line refuses to start

    handle = os.open(root, os.O_RDONLY)
    end = time.monotonic() + _LOCK_WAIT_S
    waiting = False
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise MachineError(
                        f"another command is writing {root}", "wait for it, then run this again"
                    ) from error
            if not waiting:
                logger.info("waiting for another command that writes %s", root)
                waiting = True
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _empty_staging(root: Path) -> None:
    staged = root / STAGED
    if staged.is_symlink() or (staged.exists() and not staged.is_dir()):
        raise BundleError(f"{staged} is not a folder of fr-edge", "remove it, then run this again")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"{root} cannot be written: {error.strerror}") from error


def _commit(
    change: Transaction,
    base: Bundle | None,
    old: Bundle | None,
    stage: str,
    options: Mapping[str, Any],
) -> None:
    spec = change.spec or (old.spec if old else None)
    dim = change.embedding_dim or (old.embedding_dim if old else None)
    if spec is None or dim is None:
        raise ValueError("a new bundle needs spec and embedding_dim")
    files, removed, stale = _entries(change, base, old)
    entry: dict[str, Any] = {
        "stage": stage,
        "version": __version__,
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "options": dict(options),
        "packages": loaded_packages(),
    }
    more = {"summary": change.summary, "removed": removed, "stale": stale}
    entry |= {key: value for key, value in more.items() if value}
    manifest = {
        "schema": SCHEMA,
        "input": spec.to_json(),
        "embedding_dim": dim,
        "files": {name: files[name] for name in sorted(files)},
        "history": [*(old.history if old else ()), entry],
    }
    gone = sorted(set(old.files) - set(files)) if old else []
    arrived = [*sorted(change._roles), MANIFEST]
    write_atomic(change.root / STAGED / MANIFEST, encode_json(manifest, indent=2))
    write_journal(change.root, arrived, gone)
    replay_journal(change.root)


def _entries(
    change: Transaction, base: Bundle | None, old: Bundle | None
) -> tuple[dict[str, FileEntry], dict[str, str], dict[str, str]]:
    """The manifest's entries after the change; the files that it removes because they are stale, and
    the reports that become stale, each with the reason."""
    before = with_sources(old.files) if old else {}
    files = {n: e for n, e in before.items() if not n.startswith(tuple(change._removed))}
    for name, role in change._roles.items():
        path = change.root / STAGED / name
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{name} was staged as something other than a file")
        sync(path)
        files[name] = FileEntry(role, sha256(path), path.stat().st_size)
    for name, of in change._of.items():
        sources = [source for source in (*sources_of(name), *of) if source in files]
        files[name] = replace(files[name], of=_hashes(change, base, files, name, sources))
    removed = removed_by(files, change._roles)
    for name in removed:
        del files[name]
    if removed:
        logger.info("removed, because what they were made of changed: %s", ", ".join(removed))
    page = stale_page(change.root, files, change._roles)
    if page is not None:
        path = change.path(PAGE, files[PAGE].role)
        path.write_bytes(page)
        sync(path)
        files[PAGE] = replace(files[PAGE], sha256=sha256(path), size=len(page))
    stale_before = stale_files(before)
    if page is not None:  # marked now, also where an earlier fr-edge wrote it
        stale_before.pop(PAGE, None)
    stale = {n: why for n, why in stale_files(files).items() if n not in stale_before}
    if stale:
        logger.info("kept, but out of date now: %s", ", ".join(sorted(stale)))
    return files, removed, stale


def _hashes(
    change: Transaction,
    base: Bundle | None,
    files: Mapping[str, FileEntry],
    name: str,
    sources: Iterable[str],
) -> dict[str, str]:
    """The sha256 of what a file was made of, as the stage read it."""
    hashes = {source: files[source].sha256 for source in sources}
    for source in hashes:
        if base is None or source in change._roles or source not in base.files:
            continue
        if base.files[source].sha256 != hashes[source]:
            if not is_report(name):
                raise BundleError(
                    f"{change.root / source} was replaced while this command ran; nothing was"
                    " changed",
                    "run the command again",
                )
            hashes[source] = base.files[source].sha256
    return hashes
