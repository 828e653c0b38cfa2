"""Write tensorrt_api.txt: every name and signature of TensorRT's real Python bindings, by version.

    python tests/boards/write_tensorrt_api.py FOLDER...

Each folder holds an unpacked bindings wheel for this Python, in the order of the table's columns:
`pip download --no-deps tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 ...`. The bindings
are loaded over empty libraries of TensorRT's names, made here with the system's compiler: the
classes and their docstrings come into being, nothing of TensorRT runs.

The classes below are listed with their members and signatures, the others by their names alone.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor"),
    *(
        "OnnxParser",
        "ParserError",
        "Runtime",
        "ICudaEngine",
        "IExecutionContext",
        "EngineInspector",
    ),
    *(
        "IOptimizationProfile",
        "ITimingCache",
        "IHostMemory",
        "ILogger",
        "Logger",
        "IProfiler",
        "Dims",
    ),
    *("IInt8Calibrator", "IInt8EntropyCalibrator2"),
)
LAYERS = "INetworkDefinition.add_"  # networks come from the parser: of these the names suffice
SPELLINGS = {
    "typing.SupportsInt": "int",
    "typing.SupportsFloat": "float",
    "typing_extensions.Buffer": "buffer",
    "collections.abc.Sequence[": "List[",
    "list[": "List[",
    "tuple[": "Tuple[",
    "::": ".",
}
"""What newer versions of pybind11 write -> what older ones write for the same type."""
_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+\(.*\) -> .*)$", re.MULTILINE)


def empty_libraries(bindings: Path, folder: Path) -> list[Path]:
    """The libraries that the bindings need, with functions that return 0."""
    dynamic = subprocess.run(
        ["readelf", "-d", bindings], capture_output=True, text=True, check=True
    )
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True
    )
    names = re.findall(
        r" U ((?:create|get|init)\w*(?:_INTERNAL|Registry|Version|Plugins)|_ZN\d+nv\w+)$",
        table.stdout,
        re.MULTILINE,
    )
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in names))
    paths = []
    for name in re.findall(r"NEEDED.*\[(libnv[^\]]*)\]", dynamic.stdout):
        paths.append(folder / name)
        line = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", paths[-1], source]
        subprocess.run(line, check=True)
    return paths


def rows_of(module: Any) -> list[str]:
    """One row for each name and signature, in the module's own order of names."""
    rows = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_"):
            continue
        if not isinstance(value, type):
            rows.append(f"{name} {'()' if callable(value) else 'value'}")
            continue
        rows.append(f"{name} class")
        members = getattr(value, "__members__", None)
        if members is not None:
            rows += [f"{name}.{key} = {int(member)}" for key, member in members.items()]
        elif name in CLASSES:
            base = value.__mro__[1].__name__
            rows += [f"{name} base {base}"] if not base.startswith("pybind11") else []
            for key, member in sorted(vars(value).items()):
                rows += member_rows(f"{name}.{key}", key, member)
    return rows


def member_rows(path: str, key: str, member: Any) -> list[str]:
    """The rows of a class's member: its signatures, or a property's type and whether it is set."""
    if key.startswith("_") and key not in ("__init__", "__len__", "__getitem__", "__setitem__"):
        return []
    if isinstance(member, type):
        return [f"{path} class"] + [
            f"{path}.{name} = {int(value)}"
            for name, value in (getattr(member, "__members__", None) or {}).items()
        ]
    if path.startswith(LAYERS):
        return [f"{path}()"]
    if isinstance(member, property):
        kinds = re.findall(r"-> (.*)", (member.fget.__doc__ if member.fget else "") or "")
        kind = short(kinds[0]) if kinds else "object"
        return [f"{path}: {kind}{'' if member.fset is None else ', set'}"]
    signatures = _SIGNATURE.findall(getattr(member, "__doc__", "") or "")
    return [
        f"{path}{short(text)[len(key) :]}" for text in signatures if "*args, **kwargs" not in text
    ]


def short(text: str) -> str:
    text = re.sub(r"tensorrt\.tensorrt\.|tensorrt_bindings\.tensorrt\.|tensorrt\.", "", text)
    text = re.sub(r"nv\w+::(v_\d_\d::)?", "", text)
    text = re.sub(r"<(\w+(?:\.\w+)*): -?\d+>", r"\1", text)  # an enum's value as a default
    for new, old in SPELLINGS.items():
        text = text.replace(new, old)
    return text.strip()


def load(folder: Path) -> tuple[str, list[str]]:
    """Version and rows of one wheel; for a process of its own."""
    import ctypes
    import importlib.util

    bindings = next(folder.rglob("tensorrt.so"))
    with tempfile.TemporaryDirectory() as empty:
        for library in empty_libraries(bindings, Path(empty)):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        spec = importlib.util.spec_from_file_location("tensorrt", bindings)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    text = bindings.with_name("__init__.py").read_text()
    version = re.search(r'__version__ = "(.*)"', text)
    assert version is not None
    return version[1], rows_of(module)


def table(columns: list[tuple[str, list[str]]]) -> str:
    """The columns as text: which versions have a row, and the row."""
    places: dict[str, list[str]] = {}
    for index, (_, rows) in enumerate(columns):
        for row in rows:
            places.setdefault(row, ["-"] * len(columns))[index] = "x"
    lines = [f"{''.join(marks)} {row}" for row, marks in sorted(places.items())]
    versions = " ".join(version for version, _ in columns)
    return "\n".join([f"# {versions}; written by write_tensorrt_api.py", *lines]) + "\n"


def main(folders: list[str]) -> None:
    if len(folders) == 1:
        version, rows = load(Path(folders[0]))
        print("\n".join([version, *rows]))
        return
    columns = []
    for folder in folders:
        line = [sys.executable, __file__, folder]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        version, *rows = done.stdout.splitlines()
        columns.append((version, rows))
    Path(__file__).with_name("tensorrt_api.txt").write_text(table(columns))


if __name__ == "__main__":
    main(sys.argv[1:])
