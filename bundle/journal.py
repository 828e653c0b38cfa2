"""The journal of a commit: what moves from the staging folder into the bundle, and what is removed.

A commit is decided when its journal is renamed into place. Everything that takes space is written
before, and every folder is looked at, so that what the journal asks for are renames that can be done.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ..documents import encode_json, read_json
from ..errors import BundleError, DataError, MachineError
from ..files import sync, write_atomic
from .manifest import MANIFEST, STAGED, inside, linked_part

JOURNAL = "bundle.next.json"


@dataclass(frozen=True)
class Journal:
    """A commit that is decided: what moves from the staging folder, what goes.

    `owner` names the folders and the user it was written for, so that a journal which came with an
    archive is never replayed.
    """

    arrived: list[str]
    gone: list[str]
    owner: list[int]


def own_journal(root: Path) -> Journal | None:
    """The journal of an interrupted commit that was decided here, if there is one.

    Args:
        root: The bundle's folder.

    Returns:
        None without a journal, and for one that came with an archive or is damaged.
    """
    path, staged = root / JOURNAL, root / STAGED
    if path.is_symlink() or not path.is_file() or staged.is_symlink() or not staged.is_dir():
        return None
    try:
        journal = read_json(path, Journal)
        for name in journal.arrived:
            if name != MANIFEST:
                inside(name)
        for name in journal.gone:
            inside(name)
        return journal if journal.owner == _owner(root) else None
    except (DataError, ValueError):
        return None


def write_journal(root: Path, arrived: list[str], gone: list[str]) -> None:
    """Decide a commit, whose files are all staged.

    Args:
        root: The bundle's folder.
        arrived: Names that move from the staging folder to their places.
        gone: Names that are removed.

    Raises:
        BundleError: A name leads through a link, or is a folder.
        MachineError: A file cannot be moved to its place; nothing has changed.
    """
    for name in (*arrived, *gone):
        _prepare(root, name, moves=name in arrived)
    draft = root / STAGED / JOURNAL
    write_atomic(draft, encode_json(Journal(arrived, gone, _owner(root)), indent=0))
    draft.replace(root / JOURNAL)
    sync(root)


def replay_journal(root: Path) -> None:
    """Do what a journal asks for, if there is one; safe to repeat, under the lock.

    Args:
        root: The bundle's folder.

    Raises:
        BundleError: The journal was not written here, or a name leads through a link.
        MachineError: A file cannot be moved.
    """
    if not os.path.lexists(root / JOURNAL):
        return
    journal = own_journal(root)
    if journal is None:
        raise BundleError(
            f"{root} holds {JOURNAL}, a change that was not interrupted here",
            f"if you trust the bundle, remove {JOURNAL} and {STAGED} from it",
        )
    for name in (*journal.arrived, *journal.gone):
        _prepare(root, name, moves=name in journal.arrived)
    for name in journal.arrived:
        source = root / STAGED / name
        if source.exists():
            source.replace(root / name)
    for name in journal.gone:
        (root / name).unlink(missing_ok=True)
    sync(root)
    (root / JOURNAL).unlink(missing_ok=True)


def _prepare(root: Path, name: str, *, moves: bool) -> None:
    """Raise unless the file can be moved to its place, or removed from there, by one rename."""
    target = root / name
    if link := linked_part(root, name):
        raise BundleError(
            f"{link} is a link; a bundle holds no links", "put the files themselves there"
        )
    try:
        if moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise BundleError(f"{target} is a folder, expected a file", "remove it")
            if target.parent.stat().st_dev != (root / STAGED).stat().st_dev:
                raise MachineError(
                    f"{target.parent} lies on another file system than {root}",
                    "keep a bundle on one file system",
                )
    except OSError as error:
        raise MachineError(f"{target.parent} cannot be made: {error.strerror}") from error
    if target.parent.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK):
        raise MachineError(f"{target.parent} cannot be written", "change its permissions")


def _owner(root: Path) -> list[int]:
    """What ties a journal to this folder and user: an unpacked copy has other inodes."""
    return [os.getuid(), root.stat().st_ino, (root / STAGED).lstat().st_ino]
