"""`fr-edge export`: any face network becomes model.onnx in a bundle, with its input contract."""

from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .detector_stages import ROLE_HELP, export_role, refuse_for_detector
from .output import Output

if TYPE_CHECKING:
    from ..arrays import F32


def _parse_constant(text: str) -> "tuple[str, F32]":
    """NAME=VALUE as the name and its numbers."""
    import numpy as np

    name, _, value = text.partition("=")
    try:
        numbers = np.array([float(number) for number in value.split(",")], np.float32)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not NAME=VALUE, a number or several by commas", param_hint="--constant"
        ) from error
    return name, numbers


@define_command(
    "export",
    example="fr-edge export backbone.onnx --out mine.bundle --preset insightface",
    option_groups={
        "Network": ("--arch", "--weights", "--output", "--constant"),
        "Input contract": (
            "--preset",
            "--mean",
            "--std",
            "--channels",
            "--size",
            "--faces",
            "--force",
        ),
        "Detector": ("--role", "--min-score"),
    },
)
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle to write.")
@click.option(
    "--role",
    type=click.Choice(["network", "detector"]),
    default="network",
    show_default=True,
    help=ROLE_HELP,
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Detector: confidence from which a candidate is a face; the family's by default.",
)
@click.option(
    "--arch",
    metavar="NAME|FILE.py:FUNCTION",
    help="The network of a checkpoint that does not name it; a FILE.py's code is run.",
)
@click.option(
    "--preset", metavar="NAME", help="A known contract: insightface, adadistill, raw, ..."
)
@click.option("--mean", metavar="X|R,G,B", help="Subtracted from pixels 0..255.")
@click.option("--std", metavar="X|R,G,B", help="Divides after the subtraction.")
@click.option("--channels", metavar="RGB|BGR|grey", help="Channel order, or one channel.")
@click.option("--size", metavar="HxW", help="Input size; 112x112 by default.")
@options.faces(what="Find or check the contract on faces of several people")
@click.option(
    "--weights", metavar="NAME", help="Which weights of a checkpoint with several, such as ema."
)
@click.option("--output", "embedding", metavar="NAME", help="The output that is the embedding.")
@click.option(
    "--constant",
    "constants",
    multiple=True,
    metavar="NAME=VALUE",
    help="Numbers for an input besides the image: one, or several by commas.",
)
@click.option("--force", is_flag=True, help="Export although the contract looks wrong.")
@click.option(
    "--golden", metavar="SRC", help="Golden faces to keep in the bundle; synthetic by default."
)
def command(
    output: Output,
    source: str,
    out: str,
    role: str,
    min_score: float | None,
    arch: str | None,
    preset: str | None,
    mean: str | None,
    std: str | None,
    channels: str | None,
    size: str | None,
    faces: str | None,
    golden: str | None,
    weights: str | None,
    embedding: str | None,
    constants: tuple[str, ...],
    force: bool,
) -> None:
    """Export any face network to one clean ONNX file.

    SOURCE is a bundle, a checkpoint, an ONNX, TorchScript or torch.export file. The export is compared
    with the original. With --arch FILE.py:FUNCTION the checkpoint's network is what that function
    gives: its code runs with your rights. TorchScript and torch.export files are programs; they are
    taken where they only compute tensors. The input contract is how pixels become the network's input: it comes from the network's training and
    is never guessed. When it is not known, --faces finds it; when it is declared, --faces checks it.
    A contract that contradicts the network or the faces is refused. With --role detector SOURCE is an
    ONNX file of a detector that `fr-edge align` knows; it goes into BUNDLE beside the face network.
    """
    if role == "detector":
        refuse_for_detector(
            arch=arch, weights=weights, output=embedding, constant=constants, preset=preset,
            size=size, faces=faces, golden=golden, force=force,
        )  # fmt: skip
        export_role(output, source, out, min_score=min_score, mean=mean, std=std, channels=channels)
        return
    if min_score is not None:
        raise click.UsageError("--min-score is of --role detector")
    from ..documents import to_builtins
    from ..export.export import export_onnx
    from ..faces.contract import make_spec

    overrides = {"mean": mean, "std": std, "channels": channels, "size": size}
    declared = any(value is not None for value in (preset, *overrides.values()))
    spec = make_spec(preset, **overrides) if declared else None
    result = export_onnx(
        source,
        out,
        arch=arch,
        spec=spec,
        golden=golden,
        faces=options.load_faces(faces) if faces else None,
        weights=weights,
        output=embedding,
        constants=dict(_parse_constant(item) for item in constants),
        force=force,
    )
    bundle, summary = result.bundle, result.summary
    check, nodes = summary.check, summary.nodes
    lines = [
        f"{out}/model.onnx: {bundle.embedding_dim}-d embeddings, {bundle.spec.describe()}",
        f"  {summary.parameters:,} parameters, {summary.macs / 1e6:.1f} M multiply-adds,"
        f" {nodes.before} -> {nodes.after} nodes",
        f"  compared with the original: cosine at least {check.min_cosine:.7f},"
        f" largest difference {check.max_abs_difference:.2g}",
        f"  FP16 model: cosine at least {summary.fp16.check.min_cosine:.6f}"
        if summary.fp16
        else "  no FP16 model",
        *(["  its batch cannot be freed: it takes one face at a time"] if summary.batch else []),
        f"next: fr-edge calibrate {out} --faces SRC",
    ]
    document = {"bundle": out, "file": "model.onnx", "input": bundle.spec}
    output.result(to_builtins({**document, **vars(summary)}), "\n".join(lines))
