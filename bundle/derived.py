"""What a bundle's files are made of, and which of them are stale when a file changes.

One table covers the files that stages make of each other. Reports record what they judged when they
are written. Both are kept in the manifest, so staleness is decided without reading any file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from .manifest import Bundle, FileEntry

MADE_OF: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.onnx", ("model.pt",)),
    ("model.fp16.onnx", ("model.onnx",)),
    ("calibration.json", ("model.onnx",)),
    ("calibration.cache", ("model.onnx",)),
    ("model.int8.onnx", ("model.onnx", "calibration.json")),
    ("engines/*-fp32.*", ("model.onnx",)),
    ("engines/*-fp16.*", ("model.fp16.onnx",)),
    ("engines/*-int8.*", ("model.int8.onnx",)),
    ("reports/calibration.json", ("calibration.json",)),
    ("reports/training.json", ("model.pt",)),
)
"""File pattern -> the files it is made of."""

_PAGE = "report.html"  # shows everything, so any change makes it stale


def sources_of(name: str) -> tuple[str, ...]:
    """The files that a file of a bundle is made of, by the table.

    Args:
        name: Path relative to the bundle.

    Returns:
        Paths relative to the bundle; empty for a file that is made of no other.
    """
    return tuple(
        source for pattern, sources in MADE_OF if fnmatchcase(name, pattern) for source in sources
    )


def with_sources(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Entries of an earlier fr-edge, with the sources that the table names filled in.

    Args:
        files: A manifest's entries; those that record what they are made of stay as they are.
    """
    return {
        name: entry
        if entry.of
        else replace(entry, of={s: files[s].sha256 for s in sources_of(name) if s in files})
        for name, entry in files.items()
    }


def stale_files(files: Mapping[str, FileEntry]) -> dict[str, str]:
    """Files that were made of other bytes than the bundle holds now.

    Args:
        files: The manifest's entries, with the sha256 of what each was made of.

    Returns:
        Path -> the reason, in words. What is made of a stale file is stale too.
    """
    stale: dict[str, str] = {}
    pending = True
    while pending:
        pending = False
        for name, entry in files.items():
            reason = None if name in stale else _reason(entry, files, stale)
            if reason:
                stale[name], pending = reason, True
    return stale


def stale_reports(bundle: Bundle) -> dict[str, str]:
    """The bundle's reports that no longer speak of the files it holds.

    Args:
        bundle: An open bundle; only its manifest is used.

    Returns:
        Path of the report -> the reason, in words.
    """
    stale = stale_files(bundle.files)
    for name, entry in bundle.files.items():
        if is_report(name) and not entry.of:
            stale.setdefault(name, "an earlier fr-edge made it, without recording what it judged")
    return {name: reason for name, reason in stale.items() if is_report(name)}


def is_report(name: str) -> bool:
    """Whether a file is evidence, which is kept when it becomes stale.

    Args:
        name: Path relative to the bundle.
    """
    return name.startswith("reports/")


def removed_by(files: Mapping[str, FileEntry], written: Iterable[str]) -> dict[str, str]:
    """Files that a change removes because what they were made of is gone or other bytes.

    Args:
        files: The manifest's entries after the change.
        written: What the change wrote itself, which is never removed.

    Returns:
        Path -> the reason, in words. Reports are not among them.
    """
    wrote = set(written)
    gone = {
        name: reason
        for name, reason in stale_files(files).items()
        if name not in wrote and not is_report(name)
    }
    if _PAGE in files and wrote and _PAGE not in wrote:
        gone[_PAGE] = "the bundle has changed since it was written"
    return gone


def _reason(
    entry: FileEntry, files: Mapping[str, FileEntry], stale: Mapping[str, str]
) -> str | None:
    for source, sha256 in entry.of.items():
        if source not in files:
            return f"{source} is no longer in the bundle"
        if files[source].sha256 != sha256:
            return f"{source} has changed since"
        if source in stale:
            return f"{source} is stale"
    return None
