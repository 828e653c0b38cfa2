"""Whether a TensorRT plan will load here, decided by reading it, before anything native does.

TensorRT's own reaction to a foreign, cut or damaged plan ranges from an error to a crash. So the
sidecar is compared first, then the plan's header, then the machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...documents import read_json
from ...errors import DataError, MachineError
from ...files import sha256
from ...reading import open_file
from ..fingerprint import differences
from ..machine.backends import COMPILE_ONLY, lacking, library_version, same_version

_TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
"""The first four bytes: trtexec (TensorRT, samples/common/sampleEngines.cpp) checks for the first
and reads the version from bytes 24 to 27; plans of TensorRT-RTX 1.7 begin with the second."""
_HEADER = 28  # bytes


@dataclass(frozen=True)
class PlanHeader:
    """The beginning of a plan.

    Attributes:
        backend: "tensorrt" or "tensorrt-rtx".
        version: Of the library that built it, as far as the header has it.
        size: Of the file in bytes, None where the header does not have it.
    """

    backend: str
    version: tuple[int, ...]
    size: int | None


@dataclass(frozen=True)
class PlanCheck:
    """Whether a plan will load on this machine.

    Attributes:
        file: The plan.
        backend: "tensorrt" or "tensorrt-rtx".
        version: Of the library that built it.
        sidecar: Whether its fingerprint lies beside it.
        loads: Whether it should load here.
        damaged: Whether the file itself is damaged, so that it loads nowhere.
        problems: Reasons why it will not load here.
        hint: What to do about them.
    """

    file: str
    backend: str
    version: str
    sidecar: bool
    loads: bool
    damaged: bool
    problems: tuple[str, ...]
    hint: str


def read_header(path: Path) -> PlanHeader:
    """Read the header of a plan.

    Args:
        path: The plan.

    Raises:
        DataError: The file cannot be read or is not a plan.
    """
    try:
        with open_file(path) as stream:
            head = stream.read(_HEADER)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    backend = _TAGS.get(head[:4], "")
    if len(head) < _HEADER or not backend:
        raise DataError(
            f"{path} is not a TensorRT plan: it begins with {head[:4]!r}, expected"
            f" {' or '.join(map(repr, _TAGS))}",
            "build one with `fr-edge build-engine BUNDLE`",
        )
    # Seen in plans of TensorRT-RTX only: bytes 16 to 23 are the file's size.
    size = int.from_bytes(head[16:24], "little") if backend == "tensorrt-rtx" else None
    return PlanHeader(backend, tuple(head[24:28]), size)


def check_plan(path: str | Path) -> PlanCheck:
    """Compare a plan, its sidecar (`PLAN.json`) if it has one, and this machine.

    Args:
        path: The plan.

    Raises:
        DataError: The file is not a plan, or the sidecar is damaged.
    """
    path = Path(path)
    header = read_header(path)
    sidecar = _sidecar(path)
    damage = _damage(path, header, sidecar)
    problems = [*damage, *_versions(header, sidecar)]
    if lack := lacking(header.backend):
        problems.append(lack)
    elif sidecar:
        problems += [f"it {text}" for text in differences({**sidecar, "backend": header.backend})]
    return PlanCheck(
        file=str(path),
        backend=header.backend,
        version=".".join(map(str, header.version)),
        sidecar=sidecar is not None,
        loads=not problems,
        damaged=bool(damage),
        problems=tuple(problems),
        hint=_hint(header, sidecar) if problems else "",
    )


def ensure_loadable(path: str | Path) -> None:
    """Raise before a plan is loaded that will not load.

    Args:
        path: The plan.

    Raises:
        DataError: The plan is damaged.
        MachineError: It was built for another machine or library version.
    """
    check = check_plan(path)
    if check.damaged:
        raise DataError(f"{path}: {check.problems[0]}", check.hint)
    if not check.loads:
        raise MachineError(f"{path} will not load here: {'; '.join(check.problems)}", check.hint)


def _sidecar(path: Path) -> dict[str, Any] | None:
    beside = path.with_name(f"{path.name}.json")
    if not beside.exists():
        return None
    try:
        return read_json(beside, dict[str, Any])
    except DataError as error:
        raise DataError(error.message, "build the engine again") from error


def _damage(path: Path, header: PlanHeader, sidecar: dict[str, Any] | None) -> list[str]:
    problems, size = [], path.stat().st_size
    expected = header.size if sidecar is None else sidecar.get("size", header.size)
    if expected is not None and expected != size:
        problems.append(f"the file has {size} bytes, expected {expected}: it is cut or damaged")
    elif sidecar is not None and sidecar.get("sha256", "") not in ("", sha256(path)):
        problems.append("the file's sha256 is not its sidecar's: it is damaged or another engine's")
    if sidecar is not None and sidecar.get("backend") != header.backend:
        problems.append(
            f"the file is a plan of {header.backend}, its sidecar names {sidecar.get('backend')!r}"
        )
    return problems


def _versions(header: PlanHeader, sidecar: dict[str, Any] | None) -> list[str]:
    """The header's version must be the library's, in as many numbers as both have."""
    installed = library_version(header.backend)
    if not installed:
        return []  # `lacking` reports that
    version = ".".join(map(str, header.version))
    if same_version(version, installed) or (sidecar or {}).get("version_compatible"):
        return []
    return [f"it was built with {header.backend} {version}, {installed} is installed here"]


def _hint(header: PlanHeader, sidecar: dict[str, Any] | None) -> str:
    precision = (sidecar or {}).get("precision", "int8")
    again = f"`fr-edge build-engine BUNDLE --{precision} --backend {header.backend}`"
    if header.backend in COMPILE_ONLY:
        return f"it is a compile check; on a machine with an NVIDIA GPU run {again}"
    return f"build it on the machine that runs it: {again}"
