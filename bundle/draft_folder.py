"""A folder that is filled beside a bundle's place and takes it in one step, or leaves nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MachineError, UsageError
from ..files import exchange, sync
from ..interruption import deferred_signals
from .manifest import MANIFEST


@contextmanager
def draft_beside(out: Path, force: bool) -> Iterator[Path]:
    """A folder that becomes `out` at the end of the block; on an exception nothing is left.

    What a killed run has left beside `out` is removed, or put back where it was on the way out.

    Args:
        out: The folder, absolute.
        force: Whether a bundle there is replaced.

    Yields:
        An empty folder on the same file system.

    Raises:
        UsageError: `out` exists, is not a bundle, or its place cannot be used.
        MachineError: The place cannot be written, or another command is writing there.
    """
    if not out.name:
        raise UsageError("the folder to make has no name", "name a new folder: --out DIR")
    draft, old = (out.with_name(f".{out.name}.{word}") for word in ("unpack", "replaced"))
    with _made(draft):
        if os.path.lexists(old):
            if os.path.lexists(out):
                shutil.rmtree(old)
            else:
                old.rename(out)
        _check_target(out, force)
        yield draft
        if not os.path.lexists(out):
            draft.rename(out)
        else:
            busy = "is being written by another command"
            with _exclusive(out, busy), deferred_signals():
                if exchange(draft, out):
                    shutil.rmtree(draft)
                    sync(out.parent)
                    return
                out.rename(old)
                try:
                    draft.rename(out)
                except OSError:
                    old.rename(out)
                    raise
                shutil.rmtree(old)
        sync(out.parent)


@contextmanager
def _made(draft: Path) -> Iterator[None]:
    """An empty folder that no other command uses; removed at the end."""
    if draft.is_symlink() or (draft.exists() and not draft.is_dir()):
        raise UsageError(f"{draft} is in the way", "remove it")
    try:
        draft.mkdir(exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no folder {draft.parent}", "make it first") from error
    except OSError as error:
        raise MachineError(f"{draft.parent} cannot be written: {error.strerror}") from error
    status = draft.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o002:  # whose it is could change it later
        raise UsageError(f"{draft} is in the way, and others may write it", "choose another --out")
    with _exclusive(draft, "is being written by another command"):
        try:
            for path in draft.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield
        except BaseException:  # else it has become the bundle
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def _exclusive(folder: Path, busy: str) -> Iterator[None]:
    import fcntl  # not on Windows, where the command line refuses to start

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.lstat(folder)):
                raise FileNotFoundError(folder)
        except OSError as error:
            raise MachineError(f"{folder} {busy}", "wait for it, then run this again") from error
        yield
    finally:
        os.close(handle)


def _check_target(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"{out} exists", "choose a new folder for --out, or add --force")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not a bundle", "--force replaces bundles only")
