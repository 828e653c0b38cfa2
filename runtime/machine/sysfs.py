"""The kernel's small files, read so that a sensor that says nothing is missing, never an error."""

from collections.abc import Iterator
from pathlib import Path

GPU = "sys/class/devfreq/*[.-]g[apv0-9u]*"
"""A Jetson's GPU: 17000000.ga10b, 57000000.gpu, gpu-gpc-0."""


def number(path: Path) -> float | None:
    try:
        return float(text(path))
    except ValueError:
        return None


def text(path: Path) -> str:
    """A file that may not be read, or has gone, is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def hwmon(root: Path, name: str, file: str) -> Iterator[Path]:
    """Files of the chips of that name; their numbers change from boot to boot."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if text(chip / "name") == name:
            yield from sorted(chip.glob(file))
