"""`fr-edge calibrate`: faces give ranges, ranges give the INT8 model."""

import click

from . import options
from .output import Output
from .output import command as make


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
def command(output: Output, bundle: str, faces: str, method: str, limit: int) -> None:
    """Find INT8 ranges on faces; write the Q/DQ model.

    They go to calibration.json, the model to model.int8.onnx. Only statistics are kept, never an image. Use other people than those you judge the model on.
    """
    from ..calibration.calibrate import calibrate

    done = calibrate(bundle, options.open_source(output, faces), method, limit, output.track)
    summary = dict(done.history[-1]["summary"])
    kept = ", ".join(f"{count} {why}" for why, count in summary["kept_float"].items()) or "none"
    lines = [
        f"{bundle}/model.int8.onnx: {summary['int8_layers']} layers in INT8,"
        f" {100 * summary['int8_mac_share']:.1f} % of the multiply-adds",
        f"  ranges: {summary['method']}, {summary['faces']} faces of"
        f" {summary['identities']} people",
        f"  kept in float: {kept}",
        f"next: fr-edge build-engine {bundle} --int8",
    ]
    output.result({"bundle": bundle, **summary}, "\n".join(lines))
