"""What a board or GPU will take, answered on the host from a table; docs/targets.md has its sources.

What the table lacks is unknown, never guessed.
"""

import re
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .machine.backends import RTX_COMPUTE
from .machine.device import Device, cuda_python_install
from .trt.config import has_fp8

AS_OF = "2026-11-27"  # when the table was last compared with its sources

_MIN_TENSORRT = (8, 6)  # that fr-edge drives
_MIN_PYTHON = (3, 10)
_MIN_BLACKWELL = (10, 8)  # the release that added these GPUs
_BLACKWELL = ("10.0", "12.0")
_MIN_RTX = (1, 3)
_MIN_FP8 = (
    10,
    3,
)  # the first whose FP8 convolutions need no workaround (NVIDIA/TensorRT issue 3987)


@dataclass(frozen=True)
class Target:
    """A board or GPU.

    Attributes:
        name: As users type it.
        compute: Compute capability.
        dla_cores: A text, since modules of one name differ.
        jetpack: JetPack releases that serve the board; empty for a card in a PCIe slot.
    """

    name: str
    compute: str
    dla_cores: str = "0"
    jetpack: tuple[str, ...] = ()


@dataclass(frozen=True)
class JetPack:
    """A JetPack release.

    Attributes:
        tensorrt: The version that comes with it, as far as its source names it.
        cuda: The CUDA version.
        python: The system's Python.
    """

    tensorrt: str
    cuda: str
    python: str


_ORIN_JETPACKS = ("5.1", "6.0", "6.1", "6.2", "7.2")

TARGETS = {
    target.name: target
    for target in (
        Target("nano", "5.3", "0", ("4.6",)),
        Target("tx2", "6.2", "0", ("4.6",)),
        Target("xavier-nx", "7.2", "2", ("4.6", "5.1")),
        Target("agx-xavier", "7.2", "2", ("4.6", "5.1")),
        Target("orin-nano", "8.7", "0", _ORIN_JETPACKS),
        Target("orin-nx", "8.7", "1 or 2", _ORIN_JETPACKS),
        Target("agx-orin", "8.7", "2", (*_ORIN_JETPACKS, "7.2.2")),
        Target("thor", "11.0", "0", ("7.0", "7.1", "7.2", "7.2.2")),
        Target("t4", "7.5"),
        Target("a10", "8.6"),
        Target("a30", "8.0"),
        Target("a100", "8.0"),
        Target("l4", "8.9"),
        Target("l40s", "8.9"),
        Target("h100", "9.0"),
        Target("h200", "9.0"),
        Target("b200", "10.0"),
        Target("rtx-20", "7.5"),
        Target("rtx-30", "8.6"),
        Target("rtx-40", "8.9"),
        Target("rtx-50", "12.0"),
    )
}

_DEVICE_NAMES = (
    ("orin nano", "orin-nano"),
    ("orin nx", "orin-nx"),
    ("agx orin", "agx-orin"),
    ("thor", "thor"),
    ("xavier nx", "xavier-nx"),
    ("agx xavier", "agx-xavier"),
    ("jetson tx2", "tx2"),
    ("jetson nano", "nano"),
    *((rf"\b{name}\b", name) for name, target in TARGETS.items() if not target.jetpack),
    *((rf"geforce rtx {name[-2:]}\d\d", name) for name in TARGETS if name.startswith("rtx")),
)
"""What device trees and drivers call them -> the table's name; the first that is found holds."""

JETPACKS = {
    "4.6": JetPack("8.2", "10.2", "3.6"),
    "5.1": JetPack("8.5", "11.4", "3.8"),
    "6.0": JetPack("8.6", "12.2", "3.10"),
    "6.1": JetPack("10.3", "12.6", "3.10"),
    "6.2": JetPack("10.3", "12.6", "3.10"),
    "7.0": JetPack("10.13", "13.0", "3.12"),
    "7.1": JetPack("10.13", "13.0", "3.12"),
    "7.2": JetPack("10.16", "13.2", "3.12"),
    "7.2.2": JetPack("11.4", "13", "3.12"),
}


@dataclass(frozen=True)
class Compatibility:
    """What a target will take.

    Attributes:
        target: As it was asked for.
        verdict: "works", "fails" or "unknown".
        tensorrt: Version, "" where it is not known.
        cuda: Version.
        python: Version.
        compute: Compute capability.
        typing: How the network gets its types there.
        opset: The newest ONNX opset that its TensorRT takes, 0 where it is not known.
        flavours: Precision -> the file that is built.
        fp8: Whether FP8 engines can be built, and why not.
        dla: Whether and how a DLA can be used.
        problems: What does not work there.
        steps: What to do.
        as_of: When the table was last compared with its sources.
    """

    target: str
    verdict: str
    tensorrt: str = ""
    cuda: str = ""
    python: str = ""
    compute: str = ""
    typing: str = ""
    opset: int = 0
    flavours: dict[str, str] | None = None
    fp8: str = ""
    dla: str = ""
    problems: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    as_of: str = AS_OF


def compatibility_of(text: str) -> Compatibility:
    """What a board or GPU will take.

    Args:
        text: `board`, `board@jetpack6.2`, `gpu@tensorrt10.3` or `gpu@tensorrt-rtx1.7`.

    Returns:
        The answer; its verdict is "unknown" for a board or release that the table lacks.

    Raises:
        UsageError: The text has another form.
    """
    name, _, runtime = text.strip().lower().partition("@")
    if name not in TARGETS:
        return _unknown(text, f"no board or GPU {name!r} in the table", ", ".join(TARGETS))
    target = TARGETS[name]
    if target.jetpack:
        return _on_jetpack(text, target, runtime)
    if runtime and not runtime.startswith("tensorrt"):
        raise UsageError(f"{name} runs no {runtime}", f"for example {name}@tensorrt10.13")
    library = "tensorrt-rtx" if runtime.startswith("tensorrt-rtx") else "tensorrt"
    number = runtime.removeprefix(library)
    version = _version(number, text) if number else ()
    if len(version) < 2:  # 10 alone may have a DLA or none: one number is not a version
        return _unknown(
            text,
            f"{name} runs the TensorRT that is installed beside its driver",
            f"name two numbers of its version: {name}@tensorrt10.13 or {name}@tensorrt-rtx1.7",
        )
    if library == "tensorrt-rtx":
        return _on_rtx(text, target, version)
    return _with_version(text, target, version)


def compatibility_of_device(device: Device, tensorrt: str, cuda: str) -> Compatibility | None:
    """What a board or GPU that was asked will take with the TensorRT that it has.

    Args:
        device: What `fr-edge doctor` found there.
        tensorrt: The version of its TensorRT, "" without any.
        cuda: The CUDA version that its driver serves, "" without any.

    Returns:
        The answer; its verdict is "unknown" for a board or GPU that the table lacks. None without a GPU.
    """
    gpu = device.jetson or next(iter(device.gpu), "")
    if not gpu:
        return None
    name = next((n for words, n in _DEVICE_NAMES if re.search(words, gpu, re.IGNORECASE)), None)
    version = re.match(r"\d{1,3}(\.\d{1,3}){1,2}", tensorrt)
    if name is None:
        named = (n for n, t in TARGETS.items() if bool(t.jetpack) == bool(device.jetson))
        return _unknown(gpu, f"{gpu} is not in the table", ", ".join(named))
    if version is None:
        return Compatibility(
            name,
            "fails",
            compute=TARGETS[name].compute,
            problems=("no TensorRT is installed there",),
            steps=("`fr-edge doctor` there names what is missing",),
        )
    return _with_version(name, TARGETS[name], _version(version[0], gpu), cuda, device.python)


def _on_rtx(text: str, target: Target, version: tuple[int, ...]) -> Compatibility:
    facts: dict[str, Any] = {
        "tensorrt": f"RTX {'.'.join(map(str, version))}",
        "compute": target.compute,
        "fp8": _fp8(target, None),
        "dla": "no: it has none",
    }
    problems = []
    if version < _MIN_RTX:
        problems.append(f"TensorRT-RTX {'.'.join(map(str, version))}: fr-edge drives 1.3 and later")
    if target.compute not in RTX_COMPUTE:
        problems.append(
            f"TensorRT-RTX compiles for compute capability {', '.join(RTX_COMPUTE)}, and"
            f" {target.name} has {target.compute}"
        )
    if problems:
        steps = (f"use TensorRT: {target.name}@tensorrt10.13",)
        return Compatibility(text, "fails", problems=tuple(problems), steps=steps, **facts)
    return Compatibility(
        text,
        "works",
        typing="strong: types as in the ONNX file",
        opset=19,
        flavours=_flavours(strong=True, fp8=has_fp8(target.compute)),
        steps=(
            "pip install tensorrt-rtx on x86-64 (there is no wheel for aarch64)",
            "fr-edge build-engine BUNDLE --int8 --backend tensorrt-rtx; it compiles without a GPU"
            f" too: --compute {target.compute}",
        ),
        **facts,
    )


def _on_jetpack(text: str, target: Target, runtime: str) -> Compatibility:
    known = ", ".join(target.jetpack)
    if not runtime:
        return _unknown(
            text, "the JetPack release decides", f"{target.name}@jetpackX, X of {known}"
        )
    if not runtime.startswith("jetpack"):
        raise UsageError(
            f"{target.name} is a Jetson, found {runtime!r}", f"for example {target.name}@jetpack6.2"
        )
    version = _version(runtime.removeprefix("jetpack"), text)
    # 6.2.1 is 6.2 with fixes; only a release with a TensorRT of its own has a longer name here.
    names = [".".join(map(str, version[:size])) for size in (3, 2)]
    release = next((n for n in names if n in JETPACKS), "")
    if not release:
        return _unknown(text, f"no JetPack {names[0]} in the table", f"JetPack {known}")
    if release not in target.jetpack:
        # 7.2.2 on a board that has no entry of its own stays with 7.2's TensorRT.
        release = next((n for n in names if n in target.jetpack), "")
    if not release:
        return Compatibility(
            text,
            "fails",
            compute=target.compute,
            problems=(f"JetPack {names[0]} does not serve {target.name}",),
            steps=(f"use JetPack {known}",),
        )
    pack = JETPACKS[release]
    return _with_version(text, target, _version(pack.tensorrt, text), pack.cuda, pack.python)


def _with_version(
    text: str, target: Target, version: tuple[int, ...], cuda: str = "", python: str = ""
) -> Compatibility:
    strong = version[0] >= 10
    facts: dict[str, Any] = {
        "tensorrt": ".".join(map(str, version)),
        "cuda": cuda,
        "python": python,
        "compute": target.compute,
        "fp8": _fp8(target, version),
        "dla": _dla(target, version),
    }
    problems = _problems(target, version, python)
    if problems:
        steps = (
            "flash a newer JetPack if the board has one",
            "or build with the board's own trtexec from model.int8.onnx (opset 17, FP32 scales:"
            " --int8 --fp16) or model.onnx (--fp16); fr-edge cannot verify such an engine",
        )
        return Compatibility(text, "fails", problems=problems, steps=steps, **facts)
    return Compatibility(
        text,
        "works",
        typing="strong: types as in the ONNX file" if strong else "flags: FP16 and INT8 allowed",
        opset=19 if strong else 17,
        flavours=_flavours(strong, fp8=facts["fp8"].startswith("yes")),
        steps=_steps(target, strong, cuda),
        **facts,
    )


def _problems(target: Target, version: tuple[int, ...], python: str) -> tuple[str, ...]:
    problems = []
    if target.compute in _BLACKWELL and version < _MIN_BLACKWELL:
        problems.append(
            f"TensorRT {'.'.join(map(str, version))}: {target.name} needs 10.8 and later"
        )
    if version < _MIN_TENSORRT:
        problems.append(f"TensorRT {'.'.join(map(str, version))}: fr-edge drives 8.6 and later")
    if python and _version(".".join(python.split(".")[:2]), python) < _MIN_PYTHON:
        problems.append(f"Python {python}: fr-edge needs 3.10 and later")
    return tuple(problems)


def _fp8(target: Target, version: tuple[int, ...] | None) -> str:
    """Whether a target takes FP8; a version of None is TensorRT-RTX."""
    if not has_fp8(target.compute):
        return f"no: compute capability {target.compute}, and FP8 begins with 8.9 (Ada)"
    if version is not None and version < _MIN_FP8:
        return (
            f"no: TensorRT {'.'.join(map(str, version))}, and FP8 convolutions need 10.3 and later"
        )
    if version is None:
        return "yes by its compiler; its documentation names matrix products only; not tried"
    return "yes, not tried"


def _flavours(strong: bool, *, fp8: bool = False) -> dict[str, str]:
    if strong:
        return {
            "fp32": "model.onnx",
            "fp16": "model.fp16.onnx",
            **({"fp8": "model.fp8.onnx with FP16 around it"} if fp8 else {}),
            "int8": "model.int8.onnx with FP16 around it (FP16 scales)",
        }
    return {
        "fp32": "model.onnx",
        "fp16": "model.onnx, lowered by the FP16 flag",
        "int8": "model.int8.onnx (FP32 scales), the rest lowered by the FP16 flag",
    }


def _dla(target: Target, version: tuple[int, ...]) -> str:
    if target.dla_cores == "0":
        return "no: it has none"
    if (10, 8) <= version < (11, 4):
        return f"no: TensorRT {'.'.join(map(str, version))} has no DLA support"
    if version >= (11, 4):
        return "yes, FP16 or INT8 with one batch size; not tried"
    return "FP16 only, with one batch size: it takes no explicit Q/DQ before TensorRT 11; not tried"


def _steps(target: Target, strong: bool, cuda: str) -> tuple[str, ...]:
    steps = ["copy the bundle there; an engine is built on the machine that runs it"]
    if target.jetpack:
        steps.append(
            "set the fastest power mode before any latency is measured, then sudo jetson_clocks;"
            " its number differs between boards: `fr-edge doctor` there names it"
        )
        steps.append(
            "python3 -m venv --system-site-packages .venv, so that JetPack's tensorrt is seen"
        )
        steps.append(f"{cuda_python_install(cuda)}: not newer than the driver, for CUDA graphs")
    steps.append("fr-edge build-engine BUNDLE --int8 --backend tensorrt")
    steps.append(
        "fr-edge build-engine BUNDLE --fp16 --backend tensorrt, and benchmark both: INT8 is not always faster"
    )
    if not strong:
        steps.append(
            "if it finds no implementation for a depthwise convolution, keep those in float when you calibrate"
        )
    return tuple(steps)


def _version(text: str, whole: str) -> tuple[int, ...]:
    parts = text.split(".")
    if not all(part.isdigit() for part in parts):
        raise UsageError(
            f"cannot read the version in {whole!r}", "for example orin-nano@jetpack6.2"
        )
    return tuple(int(part) for part in parts)


def _unknown(text: str, why: str, hint: str) -> Compatibility:
    return Compatibility(text, "unknown", problems=(why,), steps=(f"known: {hint}",))
