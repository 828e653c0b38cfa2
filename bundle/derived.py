"""What a bundle's files are made of, and which of them are stale when a file changes.

One table covers the files that stages make of each other. Reports record what they judged when they
are written. Both are kept in the manifest, so staleness is decided without reading any file.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..reading import open_file
from .manifest import Bundle, FileEntry

MADE_OF: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.onnx", ("model.pt",)),
    ("model.fp16.onnx", ("model.onnx",)),
    ("calibration.json", ("model.onnx",)),
    ("calibration.cache", ("model.onnx",)),
    ("model.int8.onnx", ("model.onnx", "calibration.json")),
    ("calibration.fp8.json", ("model.onnx",)),
    ("model.fp8.onnx", ("model.onnx", "calibration.fp8.json")),
    ("engines/*-fp32.*", ("model.onnx",)),
    ("engines/*-fp16.*", ("model.fp16.onnx",)),
    ("engines/*-int8.*", ("model.int8.onnx",)),
    ("engines/*-fp8.*", ("model.fp8.onnx",)),
    ("detector.json", ("detector.onnx",)),
    ("detector.fp16.onnx", ("detector.onnx",)),
    ("calibration.detector.json", ("detector.onnx",)),
    ("detector.int8.onnx", ("detector.onnx", "calibration.detector.json")),
    ("engines/*-fp32-detector.*", ("detector.onnx",)),
    ("engines/*-fp16-detector.*", ("detector.fp16.onnx",)),
    ("engines/*-int8-detector.*", ("detector.int8.onnx",)),
    ("reports/calibration-detector.json", ("calibration.detector.json",)),
    ("reports/calibration.json", ("calibration.json",)),
    ("reports/calibration-fp8.json", ("calibration.fp8.json",)),
    ("reports/training.json", ("model.pt",)),
)
"""File pattern -> the files it is made of."""

PAGE = "report.html"  # shows everything, so any change makes it stale

_STALE_MARK = b'<p id="out-of-date" style="'
_STALE_NOTE = (
    b'background:#c0292b;color:#fff;padding:.6rem 1rem;font-size:1.1rem"><b>OUT OF DATE</b> The bundle'
    b" has changed since this page was written. <code>fr-edge inspect</code> says what has changed,"
    b" <code>fr-edge report</code> writes the page anew.</p>"
)


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
            reason = None if name in (PAGE, *stale) else _reason(entry, files, stale)
            if reason:
                stale[name], pending = reason, True
    if PAGE in files and (reason := _page_reason(files)):
        stale[PAGE] = reason
    return stale


def stale_reports(bundle: Bundle) -> dict[str, str]:
    """The bundle's reports, and its page, that no longer speak of the files it holds.

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
    return name.startswith("reports/") or name == PAGE


def stale_page(root: Path, files: Mapping[str, FileEntry], written: Iterable[str]) -> bytes | None:
    """The bundle's page with the note that it is out of date.

    Args:
        root: The bundle's folder, with the page as it is before the change.
        files: The manifest's entries after the change.
        written: What the change wrote itself.

    Returns:
        The page's new bytes; None where there is no page, where it needs no note or has it, and
        where it is not the page that the manifest names.
    """
    if PAGE not in files or PAGE in set(written) or not _page_reason(files):
        return None
    path, page = root / PAGE, b""
    if path.is_file() and not path.is_symlink():
        with open_file(path) as stream:
            page = stream.read()
    if hashlib.sha256(page).hexdigest() != files[PAGE].sha256 or _STALE_MARK in page:
        return None
    before, body, after = page.partition(b"<body>")
    return before + body + _STALE_MARK + _STALE_NOTE + after if body else None


def removed_by(files: Mapping[str, FileEntry], written: Iterable[str]) -> dict[str, str]:
    """Files that a change removes because what they were made of is gone or other bytes.

    Args:
        files: The manifest's entries after the change.
        written: What the change wrote itself, which is never removed.

    Returns:
        Path -> the reason, in words. Reports are not among them.
    """
    wrote = set(written)
    return {
        name: reason
        for name, reason in stale_files(files).items()
        if name not in wrote and not is_report(name)
    }


def _page_reason(files: Mapping[str, FileEntry]) -> str | None:
    """Why the page does not show the bundle as it is: it records every file that it was made of."""
    shown = files[PAGE].of
    if not shown:
        return "an earlier fr-edge wrote it"
    for name, entry in files.items():
        if name != PAGE and shown.get(name) != entry.sha256:
            return f"{name} has changed since" if name in shown else f"{name} is newer"
    return next((f"{n} is no longer in the bundle" for n in shown if n not in files), None)


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
