"""What leaves a machine: what decides its figures, but no names, paths or serial numbers.

Versions, power mode, clocks, sensors and the board's tools' own texts are gathered; the names in
networks and documents are removed.
"""

import getpass
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto

from ...bundle.bundle import transaction
from ...bundle.manifest import Bundle
from ...documents import to_builtins
from ...onnx_file import read_onnx
from ...reading import Limited, read_file
from ..evaluation.limits import POLICY_NAME
from ..fingerprint import SOURCES
from ..machine.backends import BACKENDS, library_version
from ..machine.device import find_gpus, package_version
from ..machine.doctor import examine_system
from ..machine.monitor import read_board
from ..machine.sensors import clock_settings, denied, read_text, throttle_counts
from ..machine.tegrastats import power_modes

_HIDDEN = "<removed>"

_SIGNED = re.compile(rb"(?m)^\s*require_signature\s*=.*$")  # of the source, not of its copy
_COPIED: dict[str, Limited] = {"golden.npz": "ARRAYS_MB", POLICY_NAME: "TOML_KB"}

_SERIALS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/board_serial",
    "sys/class/dmi/id/chassis_serial",
    "etc/machine-id",
    "sys/class/net/*/address",
)
"""Files of the kernel and the system that hold a number of this one machine."""

_PATTERNS = (
    # Paths: from the root, in a home folder, in a Windows or file URL's form.
    (re.compile(r"(?<![\w.)\]])(?:file://)?~?/(?:[\w.@+~ -]*[\w.@+~-]/)*[\w.@+~-]+"), "<path>"),
    (re.compile(r"\b[A-Za-z]:\\[^\s\"',;]+"), "<path>"),
    (re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), _HIDDEN),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), _HIDDEN),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE), _HIDDEN),
    (re.compile(r"(?<=load on the GPU: ).+? \(\d+\)"), "a program"),
)

_COMMON = frozenset(
    {"root", "user", "ubuntu", "nvidia", "jetson", "orin", "tegra", "linux", "localhost", "debian"}
    | {"admin", "test", "gpu", "cuda", "box", "host", "fr-edge", "fr_edge", "int8", "fp16", "fp32"}
    | {"none", "not specified", "default string", "to be filled by o.e.m.", "system serial number"}
)
"""Names that many machines share; removing them would remove the board's own name."""

_VALUES = _COMMON | {"sample", "yours", "tensorrt", "tensorrt-rtx", "onnxruntime"}
_WORD = re.compile(r"[a-z][a-z0-9_]*")

_PACKAGES = (
    *("cuda-python", "cuda-bindings", "pycuda", "nvidia-ml-py", "numpy", "onnx", "onnxruntime"),
    *("tensorrt", "tensorrt-rtx", "msgspec", "click", "torch"),
)
_TOOLS = {
    "nvpmodel": ("nvpmodel", "-q"),
    "tegrastats": ("tegrastats", "--interval", "200"),
    "nvidia-smi": (
        "nvidia-smi",
        "--query-gpu=name,driver_version,pstate,clocks.sm,clocks.mem,power.draw,temperature.gpu",
        "--format=csv",
    ),
}
_TOOL_S = 1.5  # tegrastats goes on until it is stopped
_MAX_TEXT = 2000


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Describe this machine for somebody who does not have it; not yet without names.

    Args:
        root: Of the file system, for the kernel's and JetPack's files.

    Returns:
        JSON types. What this machine does not report is missing or empty.
    """
    system, gpus = examine_system(), find_gpus()
    facts = {
        "system": system,
        "gpus": [
            {"name": g.name, "compute": g.compute, "memory_mb": g.memory_mb, "shared": g.integrated}
            for g in gpus.gpus
        ],
        "libraries": {name: version for name in BACKENDS if (version := library_version(name))},
        "packages": {name: version for name in _PACKAGES if (version := package_version(name))},
        "power_modes": power_modes(root),
        "clocks": clock_settings(root),
        "sensors": read_board(),
        "sensors_denied": len(denied(root)),
        "throttled_since_boot": throttle_counts(root),
        "texts": _texts(root, jetson=bool(system.jetson)),
    }
    described: dict[str, Any] = to_builtins(facts)
    return described


def _texts(root: Path, *, jetson: bool) -> dict[str, str]:
    """The words of the board's own files and tools, which differ between releases."""
    models = re.findall(r"(?m)^\s*<\s*POWER_MODEL.*$", read_text(root / "etc" / "nvpmodel.conf"))
    texts = {
        "nv_tegra_release": read_text(root / "etc" / "nv_tegra_release"),
        "nvpmodel.conf": "\n".join(models),
    }
    for name, line in _TOOLS.items():
        if (name == "nvidia-smi") != jetson and shutil.which(name):
            texts[name] = _output(line)
    return {name: text[:_MAX_TEXT] for name, text in texts.items() if text}


def _output(line: tuple[str, ...]) -> str:
    try:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return f"not started: {error.strerror}"
    with process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TOOL_S)
        process.kill()
        output = process.stdout.read() if process.stdout else b""
    return output.decode(errors="replace")


def machine_names(root: Path = Path("/")) -> frozenset[str]:
    """The names and numbers of this machine and its user that a document must not hold.

    Args:
        root: Of the file system.
    """
    names = {socket.gethostname(), socket.gethostname().split(".")[0], Path.home().name}
    with suppress(KeyError, OSError):  # a user without a name, as in some containers
        names.add(getpass.getuser())
    for pattern in _SERIALS:
        names |= {read_text(path).strip("\0 ") for path in root.glob(pattern)}
    return frozenset(n for n in names if len(n) > 1 and n.lower() not in _COMMON)


def without_names(document: Any, names: Iterable[str]) -> Any:
    """A document without names, paths, addresses and serial numbers.

    Args:
        document: JSON types, nested.
        names: Texts to remove wherever they stand as words. One that the document itself uses, as a
            folder called `bundle`, stays: its readers would miss the word.

    Returns:
        A copy; keys are cleaned like texts.
    """
    own = _VALUES | set(_plain_keys(document))
    words = sorted((name for name in names if name and name not in own), key=len, reverse=True)
    parts = "|".join(map(re.escape, words))
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{parts})(?![A-Za-z0-9])") if words else None
    return _clean(document, pattern)


def _plain_keys(value: Any) -> Iterator[str]:
    """Keys at any depth that are one word, as those of the format are."""
    if isinstance(value, dict):
        yield from (key for key in value if _WORD.fullmatch(key))
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list | tuple):
            yield from _plain_keys(item)


def _clean(value: Any, pattern: "re.Pattern[str] | None") -> Any:
    if isinstance(value, dict):
        return {_clean(key, pattern): _clean(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, pattern) for item in value]
    return _clean_text(value, pattern) if isinstance(value, str) else value


@lru_cache(maxsize=1 << 14)  # a table of layers repeats its texts, and is written after every step
def _clean_text(text: str, pattern: "re.Pattern[str] | None") -> str:
    for known, replacement in _PATTERNS:
        text = known.sub(replacement, text)
    return pattern.sub(_HIDDEN, text) if pattern else text


def copy_without_names(source: Bundle, root: Path) -> None:
    """Copy what engines are built from and verified with; layers get numbers for names.

    Args:
        source: An open bundle.
        root: The copy's folder, which does not exist.
    """
    numbers: dict[str, str] = {}
    with transaction(root, "export", {"copy": True}) as change:
        change.spec, change.embedding_dim = source.spec, source.embedding_dim
        for name in SOURCES.values():
            if name in source:
                model = read_onnx(source.file(name))
                number_names(model, numbers)
                change.path(name, "model").write_bytes(model.SerializeToString())
        for name, limit in _COPIED.items():
            if name in source:
                data = read_file(source.file(name), limit)
                data = _SIGNED.sub(b"", data) if name == POLICY_NAME else data
                change.path(name, source.files[name].role).write_bytes(data)


def number_names(model: ModelProto, numbers: dict[str, str]) -> None:
    """Replace the names of a network's nodes and tensors by numbers; its input and output keep theirs.

    Args:
        model: The network, which is changed; descriptions and metadata are removed.
        numbers: Name -> its replacement, of the models before; new names are added. The models of
            one bundle share it, so that a layer is the same in all of them.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output):
        numbers.setdefault(value.name, value.name)
    del model.metadata_props[:]
    model.doc_string = model.producer_name = model.producer_version = model.domain = ""
    _number(graph, numbers)


def _number(graph: GraphProto, numbers: dict[str, str]) -> None:
    graph.name, graph.doc_string = "network", ""
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.name, value.doc_string = _numbered(value.name, "tensor", numbers), ""
    for tensor in graph.initializer:
        tensor.name, tensor.doc_string = _numbered(tensor.name, "tensor", numbers), ""
    for node in graph.node:
        node.doc_string = ""
        node.name = _numbered(node.name, node.op_type, numbers)
        for names in (node.input, node.output):
            names[:] = [_numbered(name, "tensor", numbers) for name in names]
        for inner in _graphs(node.attribute):
            _number(inner, numbers)


def _graphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _numbered(name: str, kind: str, numbers: dict[str, str]) -> str:
    if not name:  # an optional input that is left out
        return name
    return numbers.setdefault(name, f"{kind.lower()}_{len(numbers)}")
