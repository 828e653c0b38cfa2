"""The doubles that are written in C, built with the system's compiler."""

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
NO_COMPILER = "needs a C compiler, cc, for the driver's double"


def build_driver(folder: Path) -> Path:
    """libcuda.so.1 in `folder`, which LD_LIBRARY_PATH is to name."""
    return _build(HERE / "libcuda_double.c", folder / "libcuda.so.1")


def build_files(folder: Path) -> Path:
    """board_files.so in `folder`, which LD_PRELOAD is to name."""
    return _build(HERE / "board_files_double.c", folder / "board_files.so")


def _build(source: Path, library: Path) -> Path:
    library.parent.mkdir(parents=True, exist_ok=True)
    line = [str(COMPILER), "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source]
    subprocess.run([*line, "-ldl"], check=True)
    return library
