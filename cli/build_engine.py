"""`fr-edge build-engine`: an engine for this machine."""

from typing import TYPE_CHECKING, Any

import click

from . import options
from .command import define_command
from .detector_stages import build_role, refuse_for_detector
from .output import Output, size_text, table

if TYPE_CHECKING:
    from ..bundle.keys import SigningKey
    from ..faces.sources import Faces
    from ..graph.frame_input import InputKind
    from ..runtime.trt.config import EngineOptions


@define_command(
    "build-engine",
    example="fr-edge build-engine mine.bundle --int8 --backend onnxruntime",
    option_groups={
        "Precision": ("--int8", "--fp8", "--fp16", "--fp32", "--precision"),
        "Input": ("--input",),
        "TensorRT": (
            "--batch",
            "--workspace",
            "--level",
            "--dla",
            "--version-compatible",
            "--hardware-compatible",
            "--frame-size",
            "--implicit",
            "--compute",
        ),
        "Signatures": ("--sign", "--require-signature", "--trust"),
    },
)
@options.bundle
@click.option(
    "--int8",
    "precision",
    flag_value="int8",
    help="INT8; layers that calibration excluded stay FP16 or FP32.",
)
@click.option(
    "--fp8",
    "precision",
    flag_value="fp8",
    help="FP8 (E4M3), for Ada, Hopper, Blackwell and Thor; a CPU emulates it.",
)
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision.")
@click.option("--fp32", "precision", flag_value="fp32", help="Single precision.")
@click.option(
    "--precision",
    "named",
    type=click.Choice(["auto", "int8", "fp8", "fp16", "fp32"]),
    help="The same by name; auto builds each, verifies it, and keeps the fastest that passes.",
)
@options.role
@options.backend
@options.device
@options.faces(what="Calibrate on these first if the bundle is not calibrated")
@click.option("--batch", metavar="MIN,OPT,MAX", help="TensorRT: faces per run, by default 1,8,32.")
@click.option("--workspace", type=int, metavar="MB", help="TensorRT: memory for the build.")
@click.option("--level", type=int, metavar="0..5", help="TensorRT: effort of its optimiser.")
@click.option("--dla", type=int, metavar="N", help="TensorRT: run on this DLA core.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: loads on later versions too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: runs on later GPUs too.")
@click.option(
    "--input",
    "input_kind",
    type=click.Choice(["tensor", "crop", "frame"]),
    default="tensor",
    show_default=True,
    help="What the engine takes: preprocessed faces; aligned faces as pixels; or a camera frame and"
    " the landmarks of its faces, which it aligns itself.",
)
@click.option(
    "--frame-size",
    metavar="HxW,HxW,HxW",
    help="TensorRT with --input frame: smallest, typical, largest frame; by default"
    " 112x112,1080x1920,2160x3840.",
)
@click.option(
    "--implicit", is_flag=True, help="TensorRT 8, 10: INT8 by calibration.cache, not Q/DQ."
)
@options.sign(what="Sign the engine with this ed25519 private key")
@options.require_signature
@click.option("--compute", metavar="8.6,...", help="TensorRT-RTX: compile for these GPUs.")
def command(
    output: Output,
    bundle: str,
    precision: str | None,
    named: str | None,
    role: str,
    backend: str,
    faces: str | None,
    sign: str | None,
    input_kind: "InputKind",
    **tensorrt: Any,
) -> None:
    """Build an engine for this machine into BUNDLE.

    An engine runs on the kind of machine and the library version that it was built on. Layers that
    were to be INT8 or FP8 and are not are listed with the likely reason; -v lists all. tensorrt-rtx compiles
    without a GPU too: that checks the network with NVIDIA's compiler, and executes nothing. With --role
    detector the engine is one of the bundle's detector; --faces is then a folder of photographs.
    """
    chosen = precision or named
    if precision and named and precision != named:
        raise click.UsageError(f"--{precision} contradicts --precision {named}")
    if chosen is None:
        raise click.UsageError("name the engine: --int8, --fp8, --fp16, --fp32 or --precision auto")
    if role == "detector":
        refuse_for_detector(
            input="" if input_kind == "tensor" else input_kind,
            batch=tensorrt["batch"], frame_size=tensorrt["frame_size"],
        )  # fmt: skip
        key, settings = options.load_signing_key(sign), _options(**tensorrt)
        build_role(output, bundle, chosen, backend, faces, settings, key)
        return
    settings = _options(**tensorrt)
    source = options.load_faces(faces) if faces else None
    key = options.load_signing_key(sign)
    if chosen == "auto":
        if input_kind != "tensor":
            raise click.UsageError(
                f"--precision auto compares engines of --input tensor; name one for {input_kind}"
            )
        _select(output, bundle, backend, source, settings, key)
    else:
        _build(output, bundle, chosen, backend, source, settings, key, input_kind)


def _build(
    output: Output,
    bundle: str,
    precision: str,
    backend: str,
    faces: "Faces | None",
    settings: "EngineOptions | None",
    key: "SigningKey | None",
    input_kind: "InputKind",
) -> None:
    from ..documents import to_builtins
    from ..runtime.build import build_engine

    built = build_engine(
        bundle, precision, backend, faces, output.track, settings, key, input_kind=input_kind
    )
    lines = [
        f"{bundle}/{built.engine}: {built.backend}, {size_text(built.size)},"
        f" layers with weights: {built.describe_layers() or 'not reported'}"
    ]
    refused = [proof for proof in built.proof if proof.reason]
    shown = built.proof if output.verbose else refused
    if shown:
        rows = [[p.layer, p.operator, p.asked, p.built, p.evidence or "-", p.reason] for p in shown]
        head = ("layer", "operator", "asked for", "computes in", "shown by", "likely because")
        lines += ["", table(rows, head), ""]
    if not built.compile_only:
        kind = "" if input_kind == "tensor" else f"-{input_kind}"
        lines.append(f"next: fr-edge verify {bundle} --engine {precision}{kind}")
    output.result(to_builtins(built), "\n".join(lines))


def _select(
    output: Output,
    bundle: str,
    backend: str,
    faces: "Faces | None",
    settings: "EngineOptions | None",
    key: "SigningKey | None",
) -> None:
    from ..documents import to_builtins
    from ..runtime.evaluation.select_precision import select_precision

    result = select_precision(
        bundle, backend, faces, options=settings, track=output.track, sign=key
    )
    rows = [
        [
            c.precision,
            "-" if c.min_ms is None else f"{c.min_ms:.3f}",
            "-" if c.min_cosine is None else f"{c.min_cosine:.5f}",
            c.problem or ("kept" if c.precision == result.chosen else "passes"),
        ]
        for c in result.candidates
    ]
    head = ("engine", f"ms, batch {result.batch}", "min cosine", "")
    output.result(to_builtins(result), table(rows, head))


def _options(batch: str | None, compute: str | None, **values: Any) -> "EngineOptions | None":
    """TensorRT's options, or None when none was given."""
    from ..runtime.trt.config import EngineOptions

    given = {
        "workspace_mb": values["workspace"],
        "level": values["level"],
        "dla": values["dla"],
        "version_compatible": values["version_compatible"] or None,
        "hardware_compatible": values["hardware_compatible"] or None,
        "frame": _frame_sizes(values["frame_size"]) if values["frame_size"] else None,
        "implicit": values["implicit"] or None,
        "compute": tuple(compute.split(",")) if compute else None,
    }
    if batch:
        parts = batch.split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
            raise click.UsageError(f"--batch takes MIN,OPT,MAX such as 1,8,32, found {batch!r}")
        given["batch"] = tuple(int(part) for part in parts)
    chosen = {name: value for name, value in given.items() if value is not None}
    return EngineOptions(**chosen) if chosen else None


def _frame_sizes(text: str) -> tuple[tuple[int, int], ...]:
    parts = [part.strip().lower().split("x") for part in text.split(",")]
    if len(parts) != 3 or not all(len(p) == 2 and all(n.isdigit() for n in p) for p in parts):
        raise click.UsageError(
            f"--frame-size takes three sizes such as 112x112,1080x1920,2160x3840, found {text!r}"
        )
    return tuple((int(height), int(width)) for height, width in parts)
