"""`fr-edge calibrate`: INT8 or FP8 ranges from faces, and the Q/DQ model."""

from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .detector_stages import calibrate_role, refuse_for_detector
from .output import Output, table

if TYPE_CHECKING:
    from ..calibration.calibration_report import CalibrationReport
    from ..metrics.rates import RateChange


@define_command(
    "calibrate",
    example="fr-edge calibrate mine.bundle --faces faces/calibration",
    option_groups={
        "Accuracy budget": (
            "--max-tar-drop",
            "--min-cosine",
            "--far",
            "--backend",
            "--device",
        )
    },
)
@options.bundle
@options.faces(
    required=True,
    what="Calibration faces, a few hundred of many people (of a detector: a folder of photographs)",
)
@options.role
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, minmax, percentile, entropy or mse; of FP8 auto, minmax or percentile.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp8"]),
    default="int8",
    show_default=True,
    help="The 8-bit format; fp8 for Ada, Hopper, Blackwell and Thor.",
)
@click.option(
    "--depthwise",
    type=click.Choice(["auto", "float", "int8"]),
    default="auto",
    show_default=True,
    help="Grouped and depthwise convolutions: in float, in the 8-bit format like the others, or auto:"
    " float unless timed engines are faster with them and hold the budget.",
)
@click.option("--limit", default=512, show_default=True, metavar="N", help="Faces at most.")
@click.option("--max-tar-drop", type=float, metavar="X", help="Budget: loss of TAR at --far.")
@click.option("--min-cosine", type=float, metavar="X", help="Budget: the worst face's cosine.")
@click.option("--far", default=1e-4, show_default=True, metavar="X", help="The budget's FAR.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Budget: time engines of this; auto is TensorRT where it runs, else times are counted.",
)
@options.device
@click.option(
    "--trt-cache",
    metavar="VERSION",
    help="Write calibration.cache for this TensorRT (8.6.1, 10.3.0) too.",
)
@click.option(
    "--force", is_flag=True, help="Replace a calibration even by faces that look unusable."
)
def command(
    output: Output,
    bundle: str,
    faces: str,
    role: str,
    method: str,
    precision: str,
    depthwise: str,
    limit: int,
    max_tar_drop: float | None,
    min_cosine: float | None,
    far: float,
    backend: str,
    trt_cache: str | None,
    force: bool,
) -> None:
    """Find INT8 or FP8 ranges on faces; write the Q/DQ model.

    Ranges go to calibration.json, the model to model.int8.onnx; FP8's go to calibration.fp8.json and
    model.fp8.onnx beside them. Only statistics are kept, never an image. Where INT8's mean error on people
    held out from calibration is above a limit, the layers that INT8 speeds up least stay in float
    (docs/results/int8.md). What the precision loses is measured on the same people; the likely loss is an
    estimate for other people from all pairs near the threshold, with its 95 % interval where the
    people suffice. With a budget, layers go back to float (FP16 in TensorRT's engine), those that
    cost most first, until the people show that it holds: the upper ends of the 95 % intervals of
    the counted and of the likely loss are within it. Exit code 1 if no assignment holds it; also if the
    people cannot judge whether one does: then the safest is written, one layer in 8 bits, unless the
    bundle has a calibration, which is kept without --force. Exit code 4 if they are too few for any answer. A search that was
    interrupted continues. Faces that are not aligned, or whose people the float network hardly tells
    apart, replace no earlier calibration (exit code 4) unless --force is given. With --role detector the
    bundle's detector gets its ranges from photographs, and is judged on one photograph in four.
    """
    if role == "detector":
        refuse_for_detector(
            method="" if method == "auto" else method,
            precision="" if precision == "int8" else precision,
            depthwise="" if depthwise == "auto" else depthwise,
            max_tar_drop=max_tar_drop, min_cosine=min_cosine, trt_cache=trt_cache, force=force,
            backend="" if backend == "auto" else backend,
        )  # fmt: skip
        calibrate_role(output, bundle, faces, limit)
        return
    from ..bundle.bundle import open_bundle
    from ..calibration.calibrate import calibrate
    from ..calibration.search.budget import Budget
    from ..documents import to_builtins
    from ..faces.sources import open_faces
    from ..runtime.layer_latency import latency_here

    has_budget = max_tar_drop is not None or min_cosine is not None
    if precision == "fp8" and backend == "onnxruntime":
        raise click.UsageError("onnxruntime emulates FP8, so its times decide nothing")
    if backend != "auto" and not has_budget:
        raise click.UsageError("--backend needs a budget: add --max-tar-drop 0.003")
    opened = open_bundle(bundle)
    report = calibrate(
        opened,
        open_faces(faces),
        method,
        limit,
        output.track,
        precision=precision,
        budget=Budget(max_tar_drop, min_cosine, far) if has_budget else None,
        trt_cache=trt_cache,
        latency=latency_here(opened, backend),
        depthwise=depthwise,
        force=force,
    ).report
    output.result({"bundle": bundle, **to_builtins(report)}, _text(bundle, report, far))


def _text(bundle: str, report: "CalibrationReport", far: float) -> str:
    from ..calibration.table import CALIBRATION_FILES

    name = report.precision.upper()
    kept = ", ".join(f"{count} {why}" for why, count in report.kept_float.items()) or "none"
    lines = [
        f"{bundle}/{CALIBRATION_FILES[report.precision].model}: {report.int8_layers} layers in {name},"
        f" {100 * report.int8_mac_share:.1f} % of all multiply-adds,"
        f" {100 * report.int8_dense_share:.1f} % of the dense layers'",
        f"  ranges: {report.method}, {report.faces} faces of {report.identities} people",
        f"  kept in float (FP16 in TensorRT's engine, judged as FP32): {kept}",
    ]
    if judged := report.judged:
        cosine = judged.cosine
        lines.append(
            f"  on {judged.faces} faces of {judged.people} other people: cosine mean"
            f" {cosine.mean:.5f}, p1 {cosine.p1:.5f}, min {cosine.min:.5f}"
        )
        if judged.rates:
            lines.append(_rates(judged.rates, name))
    if len(report.trials) > 1:
        lines += [
            f"  assignments tried (time: {report.time_source}; all in float is 1)",
            _trials(report, far, name),
        ]
    return "\n".join([*lines, f"next: fr-edge build-engine {bundle} --{report.precision}"])


def _rates(rates: "tuple[RateChange, ...]", name: str) -> str:
    rows = [
        [
            f"{rate.far:g}",
            f"{rate.reference:.4f}",
            f"{rate.engine:.4f}",
            _likely_loss(rate),
            f"{rate.threshold.reference:.4f}",
            f"{rate.threshold.engine:.4f}",
            f"{rate.threshold_kept.tar:.4f}",
        ]
        for rate in rates
    ]
    header = (
        "FAR", "TAR FP32", name, "likely loss", "threshold FP32", name, "TAR at FP32's",
    )  # fmt: skip
    return table(rows, header)


def _likely_loss(rate: "RateChange") -> str:
    interval = rate.smoothed_drop_interval_95
    text = f"{rate.smoothed_drop:+.4f}"
    return f"{text} ± {(interval[1] - interval[0]) / 2:.4f}" if interval else text


def _trials(report: "CalibrationReport", far: float, name: str) -> str:
    """The assignments that were judged, those with most 8-bit layers first."""
    rows = []
    for trial in sorted(report.trials, key=lambda trial: -trial.int8_mac_share):
        rate, cosine = trial.loss.at(far), trial.loss.cosine
        rows.append(
            [
                f"{100 * trial.int8_mac_share:.1f} %",
                str(len(trial.float_layers)),
                f"{trial.cost:.3f}",
                f"{cosine.mean:.5f}",
                f"{cosine.min:.5f}",
                f"{rate.drop:+.4f}" if rate else "-",
                _likely_loss(rate) if rate else "-",
                "taken" if trial is report.trials[-1] else "",
            ]
        )
    drop = f"TAR drop at {far:g}"
    return table(
        rows, (f"MACs in {name}", "left out", "time", "cosine mean", "min", drop, "likely", "")
    )
