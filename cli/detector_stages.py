"""`--role detector`: export, calibrate and build for the detector of a bundle."""

from typing import TYPE_CHECKING, Any

import click

from .output import Output, size_text, stored_or_not, table
from .verdict_text import (
    artifact_text,
    failure_text,
    gates_text,
    reason_lines,
    verdict_text,
    write_junit,
)

if TYPE_CHECKING:
    from ..bundle.keys import SigningKey
    from ..metrics.detection import DetectionDrift
    from ..runtime.benchmark.frame_benchmark import FrameBenchmark
    from ..runtime.evaluation.photograph_result import PhotographResult
    from ..runtime.trt.config import EngineOptions

ROLE_HELP = "What SOURCE is: a face network, or the detector that finds faces for it."


def refuse_for_detector(**given: Any) -> None:
    """End the command where options were given that a detector does not have.

    Args:
        given: Option, underscores for dashes -> its value, empty where it was not given.
    """
    for name, value in given.items():
        if value not in (None, False, (), ""):
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} is not for --role detector")


def refuse_for_photos(**given: Any) -> None:
    """End the command where options were given that `--photos` does not go with.

    Args:
        given: Option, underscores for dashes -> its value, empty where it was not given.
    """
    for name, value in given.items():
        if value not in (None, False, (), ""):
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --photos")


def export_role(output: Output, source: str, out: str, **settings: Any) -> None:
    """Export a detector into a bundle.

    Args:
        output: Where the result goes.
        source: The ONNX file.
        out: The bundle.
        settings: As `export_detector` takes them.
    """
    from ..documents import to_builtins
    from ..export.detector_export import export_detector

    result = export_detector(source, out, **settings)
    lines = [
        f"{out}/{result.file}: {result.detector.describe()}",
        f"  {result.parameters:,} parameters, largest difference from the original"
        f" {result.max_difference:.2g} of an output",
        "  an FP16 model too" if result.fp16 else "  no FP16 model",
        f"next: fr-edge calibrate {out} --role detector --faces PHOTOS",
    ]
    output.result(to_builtins(result), "\n".join(lines))


def calibrate_role(output: Output, bundle: str, photographs: str, limit: int) -> None:
    """Calibrate a bundle's detector on photographs.

    Args:
        output: Where the result goes.
        bundle: The bundle.
        photographs: A folder of photographs.
        limit: Most photographs that calibrate.
    """
    from ..calibration.detector_calibration import DETECTOR_INT8, calibrate_detector
    from ..documents import to_builtins
    from ..faces.photographs import open_photographs

    report = calibrate_detector(bundle, open_photographs(photographs), limit, output.track)
    kept = ", ".join(f"{count} {why}" for why, count in report.kept_float.items()) or "none"
    lines = [
        f"{bundle}/{DETECTOR_INT8}: {report.int8_layers} layers in INT8,"
        f" {100 * report.int8_mac_share:.1f} % of all multiply-adds",
        f"  ranges: {report.photographs} photographs",
        f"  kept in float: {kept}",
    ]
    if report.judged:
        lines.append(f"  on {report.held_out} other photographs: {drift_text(report.judged)}")
    lines.append(f"next: fr-edge build-engine {bundle} --role detector --int8")
    output.result({"bundle": bundle, **to_builtins(report)}, "\n".join(lines))


def build_role(
    output: Output,
    bundle: str,
    precision: str,
    backend: str,
    photographs: str | None,
    settings: "EngineOptions | None",
    key: "SigningKey | None",
) -> None:
    """Build an engine of a bundle's detector, calibrated first where photographs are given.

    Args:
        output: Where the result goes.
        bundle: The bundle.
        precision: "fp32", "fp16" or "int8".
        backend: As `--backend`.
        photographs: To calibrate on, where INT8 is not calibrated yet.
        settings: TensorRT's options.
        key: Signs the engine.
    """
    if precision in ("auto", "fp8"):
        raise click.UsageError("a detector has FP32, FP16 and INT8 engines: name one of them")
    from ..bundle.bundle import open_bundle
    from ..bundle.signature import add_signature
    from ..calibration.detector_calibration import (
        DETECTOR_INT8,
        DETECTOR_TABLE,
        calibrate_detector,
    )
    from ..documents import to_builtins
    from ..faces.photographs import open_photographs
    from ..runtime.detector_engine import build_detector_engine

    if precision == "int8" and photographs and DETECTOR_INT8 not in open_bundle(bundle):
        calibrate_detector(bundle, open_photographs(photographs), track=output.track)
        if key:
            add_signature(open_bundle(bundle), (DETECTOR_INT8, DETECTOR_TABLE), key)
    built = build_detector_engine(bundle, precision, backend, settings, key)
    lines = [
        f"{bundle}/{built.engine}: {built.backend}, {size_text(built.size)}, layers with weights:"
        f" {built.describe_layers() or 'not reported'}"
    ]
    if not built.compile_only:
        lines.append(f"next: fr-edge verify {bundle} --photos PHOTOS")
    output.result(to_builtins(built), "\n".join(lines))


def drift_text(drift: "DetectionDrift") -> str:
    """A detector against its reference in a line.

    Args:
        drift: What was measured.
    """
    if drift.missed_share is None:
        return "the FP32 detector finds no face there"
    text = f"{drift.missed} of {drift.faces} faces missed"
    if drift.missed_interval_95:
        low, high = (100 * end for end in drift.missed_interval_95)
        text += f" ({100 * drift.missed_share:.1f} %, 95 % interval {low:.1f} to {high:.1f} %)"
    text += f", {drift.added} added"
    if drift.shift and drift.shift_in_photograph:
        text += (
            f"; landmarks move {drift.shift.median:.2f} pixels of the aligned face in the median,"
            f" p95 {drift.shift.p95:.2f} ({drift.shift_in_photograph.median:.2f} of the photograph)"
        )
    return text


def verify_photos(
    output: Output, bundle: str, photographs: str, junit: str | None, **settings: Any
) -> None:
    """Judge a bundle's detector and engine on photographs.

    Args:
        output: Where the result goes.
        bundle: The bundle.
        photographs: A folder with one folder per person.
        junit: Where the gates go as JUnit XML.
        settings: As `verify_photographs` takes them.
    """
    from ..documents import to_builtins
    from ..faces.photographs import open_photographs
    from ..runtime.evaluation.verify_photographs import verify_photographs

    opened = open_photographs(photographs)
    result, unstored = stored_or_not(
        lambda: verify_photographs(bundle, opened, track=output.track, **settings)
    )
    output.result(to_builtins(result), _photographs_text(bundle, result))
    graph = " graph, not an engine," if result.judged == "graph" else ""
    title = f"{result.engine}{graph} on {result.backend}, photographs {result.name}"
    write_junit(junit, "verify", title, result.gates, result.reasons, result.not_measured)
    output.check_stored(unstored)
    if not result.passed:
        output.fail_gate(failure_text(result.verdict, result.reasons))


def _photographs_text(bundle: str, result: "PhotographResult") -> str:
    counts = result.photographs
    kind = "-frame" if result.input_kind == "frame" else ""
    lines = [
        f"{bundle}: {result.engine}{kind} on {result.backend} with {result.family} in"
        f" {result.detector_engine}, {counts.all} photographs",
        f"  {artifact_text(result.artifact, result.backend)}",
        f"  detector {artifact_text(result.detector, result.backend)}",
        f"  against {result.reference}",
        f"  a face in {counts.reference} photographs by FP32, in {counts.engine} here, missed in"
        f" {counts.missed}; {counts.unreadable} cannot be used; compared: {counts.compared}",
        f"  {drift_text(result.detection)}",
    ]
    rows = [
        [
            f"{far} *" if rate.low_confidence else far,
            _share(rate.reference),
            _share(rate.engine),
            _share(rate.delta, sign="+"),
            ""
            if rate.interval_95 is None
            else "{:+.4f} to {:+.4f}".format(*rate.interval_95.delta),
            _share(result.tar_with_missed.get(far)),
            *(_share(s.tar[far].delta if far in s.tar else None, sign="+") for s in result.steps),
        ]
        for far, rate in result.tar.items()
    ]
    if rows:
        steps = [f"by {step.step}" for step in result.steps]
        head = (
            "FAR",
            "TAR host",
            "TAR here",
            "change",
            "95 % interval of it",
            "with missed",
            *steps,
        )
        lines.append(table(rows, head))
        if any(rate.low_confidence for rate in result.tar.values()):
            lines.append("* depends on fewer than 10 impostor pairs")
    lines += [
        f"cosine after {step.step}: mean {step.mean_cosine:.5f}, min {step.min_cosine:.5f}"
        for step in result.steps
    ]
    lines += [f"found: {finding}" for finding in result.findings]
    lines.append(gates_text(result.gates))
    lines += [f"not measured: {note}" for note in result.not_measured]
    if result.report:
        lines.append(f"report: {result.report}")
    people = f" of {result.faces.identities} people" if result.faces else ""
    lines += reason_lines(result.reasons)
    lines.append(
        f"{verdict_text(result.verdict, result.judged)}: {counts.compared} photographs{people}"
    )
    return "\n".join(lines)


def _share(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def benchmark_photos(
    output: Output, bundle: str, photographs: str, *, allow_invalid: bool, **settings: Any
) -> None:
    """Time frames from JPEG bytes to matches.

    Args:
        output: Where the result goes.
        bundle: The bundle.
        photographs: A folder of photographs whose faces the frames are composed of.
        allow_invalid: Whether an INVALID run ends with exit code 0.
        settings: As `benchmark_frames` takes them; those that are None have their defaults.
    """
    from ..documents import to_builtins
    from ..faces.photographs import open_photographs
    from ..runtime.benchmark.frame_benchmark import benchmark_frames

    given = {name: value for name, value in settings.items() if value not in (None, ())}
    result = benchmark_frames(
        bundle,
        open_photographs(photographs),
        track=output.track,
        before_storing=lambda done: output.result(to_builtins(done), _frames_text(bundle, done)),
        **given,
    )
    invalid = sum(run.verdict != "VALID" for run in result.frames)
    if invalid and not allow_invalid:
        output.fail_gate(
            f"INVALID: {invalid} of {len(result.frames)} lines; --allow-invalid exits 0 all the same"
        )


def _frames_text(bundle: str, result: "FrameBenchmark") -> str:
    kind = "-frame" if result.input_kind == "frame" else ""
    height, width = result.frame_size
    rows = [
        [
            str(run.faces),
            run.verdict,
            f"{run.frames_per_s:.1f}",
            *(
                "-" if run.latency_ms[name] is None else f"{run.latency_ms[name]:.2f}"
                for name in ("p50", "p90", "p99")
            ),
            *(f"{ms:.2f}" for ms in run.steps_ms.values()),
        ]
        for run in result.frames
    ]
    steps = list(result.frames[0].steps_ms)
    head = ("faces", "", "frames/s", "p50 ms", "p90", "p99", *steps)
    lines = [
        f"{bundle}: {result.engine}{kind} on {result.backend} with {result.family} in"
        f" {result.detector_engine} on {result.detector_backend}",
        f"  frames of {width}x{height} pixels, {result.timed}",
        f"  each face is searched among {result.gallery:,}; alignment is"
        f" {'in the engine, under embed' if kind else 'on the host'}",
        table(rows, head),
    ]
    for run in result.frames:
        count = "1 face" if run.faces == 1 else f"{run.faces} faces"
        lines += [f"  {count}: {reason}" for reason in run.reasons]
    if result.report:
        lines.append(f"report: {result.report}")
    return "\n".join(lines)
