"""`fr-edge calibrate`: faces give ranges, ranges give the INT8 model."""

import json
from typing import Any

import click

from ..cli import options
from .output import Output, table
from .output import command as make

_UNMOVED = "TAR if it is not moved"


@make("calibrate")
@options.bundle
@options.faces(required=True, what="Calibration faces, a few hundred of many people")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, minmax, percentile, entropy or mse.",
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
@click.option(
    "--trt-cache",
    metavar="VERSION",
    help="Write calibration.cache for this TensorRT (8.6.1, 10.3.0) too.",
)
@click.option(
    "--no-equalise", is_flag=True, help="Leave out the equalisation of channels between layers."
)
@click.option("--no-centre", is_flag=True, help="Leave out the centring of activations.")
@click.option("--no-bias-correction", is_flag=True, help="Leave out the correction of biases.")
@click.option("--no-rounding", is_flag=True, help="Round weights to nearest, not to the data.")
def command(
    output: Output,
    bundle: str,
    faces: str,
    method: str,
    limit: int,
    max_tar_drop: float | None,
    min_cosine: float | None,
    far: float,
    backend: str,
    trt_cache: str | None,
    no_equalise: bool,
    no_centre: bool,
    no_bias_correction: bool,
    no_rounding: bool,
) -> None:
    """Find INT8 ranges on faces; write the Q/DQ model.

    They go to calibration.json, the model to model.int8.onnx. Only statistics are kept, never an
    image. What INT8 lost is measured on people held apart from the calibration; the likely loss is
    what other people should lose, by all pairs near the threshold. With a budget, layers go back to
    float (FP16 in TensorRT's engine), those that cost most first, until it holds; exit code 1 when
    none does. A search that was killed goes on where it was.
    """
    from ..bundle.bundle import open_bundle
    from ..calibration.calibrate import Steps, calibrate
    from ..calibration.mixed_precision import Budget
    from ..runtime.layer_latency import latency_here

    asked = max_tar_drop is not None or min_cosine is not None
    if backend != "auto" and not asked:
        raise click.UsageError("--backend times what a budget tries: add --max-tar-drop 0.003")
    opened = open_bundle(bundle)
    done = calibrate(
        opened,
        options.open_source(output, faces),
        method,
        limit,
        output.track,
        steps=Steps(not no_equalise, not no_centre, not no_bias_correction, not no_rounding),
        budget=Budget(max_tar_drop, min_cosine, far) if asked else None,
        trt_cache=trt_cache,
        latency=latency_here(opened, backend),
    )
    summary = dict(done.history[-1]["summary"])
    report = json.loads(done.file("reports/calibration.json").read_text(encoding="utf-8"))
    trials = report["trials"]
    for warning in summary["warnings"]:
        output.note(f"warning: {warning}")
    genuine = summary["judged"]["genuine_pairs"] if summary["judged"] else 0
    if max_tar_drop is not None and genuine * max_tar_drop < 1.0:
        output.note(
            f"warning: {genuine} genuine pairs cannot tell a TAR drop of {max_tar_drop:g} from none by"
            " count: more people with several images each would show what INT8 really loses"
        )
    text = _text(bundle, summary, _pareto(trials, far), report["time"])
    output.result({"bundle": bundle, **summary, "time": report["time"], "trials": trials}, text)


def _pareto(trials: list[dict[str, Any]], far: float) -> str:
    """What was tried, the most INT8 first; nothing where there was no choice."""
    if len(trials) < 2:
        return ""
    rows = []
    for trial in sorted(trials, key=lambda trial: -trial["int8_mac_share"]):
        rate = next((rate for rate in trial["rates"] if rate["far"] == far), None)
        rows.append(
            [
                f"{100 * trial['int8_mac_share']:.1f} %",
                str(len(trial["float_layers"])),
                f"{trial['cost']:.3f}",
                f"{trial['cosine']['mean']:.5f}",
                f"{trial['cosine']['min']:.5f}",
                f"{-rate['delta']:+.4f}" if rate else "-",
                _likely(rate) if rate else "-",
                "taken" if trial is trials[-1] else "",
            ]
        )
    drop = f"TAR drop at {far:g}"
    head = ("MACs in INT8", "left out", "time", "cosine mean", "min", drop, "likely", "")
    return table(rows, head)


def _likely(rate: dict[str, Any]) -> str:
    return f"{rate['smoothed_drop']:+.4f} ± {rate['smoothed_drop_error']:.4f}"


def _text(bundle: str, found: dict[str, Any], pareto: str, times: str) -> str:
    kept = ", ".join(f"{count} {why}" for why, count in found["kept_float"].items()) or "none"
    lines = [
        f"{bundle}/model.int8.onnx: {found['int8_layers']} layers in INT8,"
        f" {100 * found['int8_mac_share']:.1f} % of all multiply-adds,"
        f" {100 * found['int8_dense_share']:.1f} % of the dense layers'",
        f"  ranges: {found['method']}, {found['faces']} faces of {found['identities']} people",
        f"  kept in float (FP16 in TensorRT's engine, judged as FP32): {kept}",
    ]
    if judged := found["judged"]:
        cosine = judged["cosine"]
        lines.append(
            f"  on {judged['faces']} faces of {judged['people']} other people: cosine mean"
            f" {cosine['mean']:.5f}, p1 {cosine['p1']:.5f}, min {cosine['min']:.5f}"
        )
        rows = [
            [
                f"{rate['far']:g}",
                f"{rate['reference']:.4f}",
                f"{rate['engine']:.4f}",
                _likely(rate),
                f"{rate['threshold']['reference']:.4f}",
                f"{rate['threshold']['engine']:.4f}",
                f"{rate['threshold_kept']['tar']:.4f}",
            ]
            for rate in judged["rates"]
        ]
        head = ("FAR", "TAR FP32", "INT8", "likely loss", "threshold FP32", "INT8", _UNMOVED)
        lines += [table(rows, head)] if rows else []
    if pareto:
        lines += [f"  what was tried (time: {times}; all in float is 1)", pareto]
    return "\n".join([*lines, f"next: fr-edge build-engine {bundle} --int8"])
