"""Build an engine and give it a fingerprint: where it was built, from what, in which precisions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from ...bundle import Bundle, change, open_bundle, sha256
from ...calibration.calibrate import calibrate
from ...errors import BundleError, UsageError
from ...faces.sources import Faces
from ...progress import Track, silent
from ..machine.backends import pick_backend
from . import cpu
from .cpu_race import Raced
from .engine_config import EngineOptions
from .fingerprint import SOURCES, machine_fingerprint
from .implicit import cache_version
from .made import Made, layer_precisions
from .plan_engine import make_plan

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Built:
    """What `build_engine` made; `layers` counts layers with weights by precision: TensorRT's as
    they were built, the CPU's as the model has them. `integer_kernels` are those that run on
    integer arithmetic; `size` in bytes."""

    engine: str
    backend: str
    precision: str
    layers: dict[str, int]
    integer_kernels: int
    size: int
    notes: list[str]

    @property
    def told(self) -> str:
        """The layers in words: "33 INT8 (21 in integer kernels), 17 FP32"."""
        parts = [f"{count} {name.upper()}" for name, count in self.layers.items() if count]
        if self.layers.get("int8", 0) > self.integer_kernels:
            parts[0] += f" ({self.integer_kernels} in integer kernels)"
        return ", ".join(parts)


def engine_name(backend: str, precision: str, raw: bool = False) -> str:
    """Where the engine lies in the bundle; a `raw` one takes pixels."""
    kind = f"{precision}-raw" if raw else precision
    return f"engines/{backend}-{kind}.{'onnx' if backend == cpu.NAME else 'plan'}"


def build_engine(
    bundle: Bundle | str | Path,
    precision: str,
    backend: str = "auto",
    faces: Faces | None = None,
    track: Track = silent,
    options: EngineOptions | None = None,
) -> Built:
    """Build `precision` (fp32, fp16, int8) for this machine, into the bundle.

    INT8 calibrates first when the bundle has no table and `faces` are given, for implicit
    quantisation with TensorRT's cache; without either it raises UsageError. `options` are
    TensorRT's. Raises MachineError when the backend cannot be used here, ModelError when it refuses
    the network, GateFailed when an INT8 engine would hold no INT8 convolution; the bundle then stays
    as it was.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", f"precisions: {', '.join(PRECISIONS)}")
    chosen = pick_backend(backend, build=True)
    if chosen == cpu.NAME and options is not None:
        raise UsageError(
            "batch, workspace and the other build options are TensorRT's",
            "leave them out, or name --backend tensorrt or tensorrt-rtx; on the CPU"
            " `open_raw_session` takes pixels with any engine",
        )
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if precision == "int8" and "model.int8.onnx" not in bundle:
        if faces is None:
            raise UsageError(
                f"{bundle.root} is not calibrated, and INT8 ranges come from faces only",
                "add --faces SRC, or run `fr-edge calibrate` first",
            )
        version = cache_version(chosen) if options and options.implicit else None
        bundle = calibrate(bundle, faces, track=track, trt_cache=version)
    if precision == "fp16" and SOURCES["fp16"] not in bundle:
        raise BundleError(
            f"{bundle.root} has no FP16 flavour: the network's numbers do not fit, or it was"
            " exported without",
            "build --fp32 or --int8, or export again: `fr-edge export` says why",
        )
    options = options or EngineOptions()
    name, cache = engine_name(chosen, precision, options.raw), f"engines/{chosen}.timing"
    with change(bundle.root, "build-engine", {"precision": precision, "backend": chosen}) as draft:
        draft.drop(f"reports/verify-{precision}", f"reports/evaluate-{precision}")
        draft.drop(f"reports/benchmark-{precision}", "report.html")
        target = draft.path(name, f"{precision} engine")
        if chosen == cpu.NAME:
            made = _make_onnx(bundle.file(SOURCES[precision]), target, precision)
        else:
            known = bundle.file(cache).read_bytes() if cache in bundle else b""
            plan, made = make_plan(bundle, precision, chosen, options, known)
            target.write_bytes(plan)
            if made.timing_cache:
                draft.path(cache, "timing cache").write_bytes(made.timing_cache)
        fingerprint = {
            **machine_fingerprint(chosen),
            **made.facts,
            "precision": precision,
            "source_sha256": bundle.files[SOURCES[precision]].sha256,
            "table_sha256": _hash(bundle, "calibration.json") if precision == "int8" else "",
            "input": bundle.spec.to_json(),
            "layers": dict(made.layers),
            "integer_kernels": made.integer_kernels,
            "size": target.stat().st_size,
            "sha256": sha256(target),
        }
        text = json.dumps(fingerprint, indent=1) + "\n"
        draft.path(f"{name}.json", "engine fingerprint").write_text(text, encoding="utf-8")
        draft.summary.update(layers=dict(made.layers), integer_kernels=made.integer_kernels)
        size = target.stat().st_size
    kernels = made.integer_kernels
    return Built(name, chosen, precision, dict(made.layers), kernels, size, list(made.notes))


def _hash(bundle: Bundle, name: str) -> str:
    return bundle.files[name].sha256 if name in bundle else ""


def _make_onnx(source: Path, target: Path, precision: str) -> Made:
    executed = cpu.build(source, target)
    layers = layer_precisions(onnx.load(source))
    if precision != "int8":
        note = "onnxruntime's CPU has few FP16 kernels: weights are FP16, most sums FP32"
        notes = (note,) if precision == "fp16" else ()
        return Made(layers, 0, {"operators": executed.operators}, notes)
    integer, total = len(executed.integer), layers["int8"]
    facts = {
        "operators": executed.operators,
        "integer_layers": list(executed.integer),
        "int8_in_float": total - integer,
        "raced": [{"int8": len(r.layers), "relative": r.relative} for r in executed.raced],
    }
    return Made(layers, integer, facts, tuple(_int8_notes(integer, total, executed.raced[0])))


def _int8_notes(integer: int, total: int, best: Raced) -> Iterator[str]:
    if integer:
        times = " and ".join(f"{ratio:.2f}" for ratio in best.relative)
        yield (
            f"{integer} of {total} INT8 layers run on integer kernels, which was fastest here:"
            f" {times} of the time in float, one face and a few at once"
        )
    else:
        yield f"INT8 is not faster than float on this CPU: all {total} INT8 layers run in float"
    if in_float := total - integer:
        yield (
            f"{in_float} INT8 layers run in float with their INT8 weights and round nothing between"
            " layers; `verify` and `evaluate` round in all of them, as TensorRT does"
        )
