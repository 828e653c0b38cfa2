"""`fr-edge export`: any face network becomes model.onnx in a bundle, with its input contract."""

import click

from ..cli import options
from .command import define_command
from .output import Output


@define_command(
    "export",
    example="fr-edge export backbone.onnx --out mine.bundle --preset insightface",
    option_groups={
        "Input contract": ("--preset", "--mean", "--std", "--channels", "--size", "--faces")
    },
)
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle to write.")
@click.option("--arch", metavar="NAME", help="The network of a checkpoint that does not name it.")
@click.option("--preset", metavar="NAME", help="Input contract: insightface, adadistill, raw, ...")
@click.option("--mean", metavar="X|R,G,B", help="Subtracted from pixels 0..255.")
@click.option("--std", metavar="X|R,G,B", help="Divides after that.")
@click.option("--channels", metavar="RGB|BGR", help="Channel order.")
@click.option("--size", metavar="HxW", help="Input size, 112x112 unless said.")
@options.faces(what="Find the contract from faces of several people, where nobody declares it")
@click.option("--golden", metavar="SRC", help="Keep these faces in the bundle, not drawn ones.")
def command(
    output: Output,
    source: str,
    out: str,
    arch: str | None,
    preset: str | None,
    mean: str | None,
    std: str | None,
    channels: str | None,
    size: str | None,
    faces: str | None,
    golden: str | None,
) -> None:
    """Bring any face network into one clean ONNX, proved.

    SOURCE is a bundle, a checkpoint or an ONNX file.
    The input contract says how a face becomes the input; whoever trained the network knows it. Where
    nobody does, --faces finds it; it is never guessed.
    """
    from ..documents import to_builtins
    from ..export.export import export_onnx
    from ..faces.contract import make_spec

    given = {"mean": mean, "std": std, "channels": channels, "size": size}
    told = preset is not None or any(value is not None for value in given.values())
    spec = make_spec(preset, **given) if told else None
    result = export_onnx(
        source,
        out,
        arch=arch,
        spec=spec,
        golden=golden,
        faces=options.load_faces(faces) if faces else None,
    )
    bundle, summary = result.bundle, result.summary
    check, nodes = summary.check, summary.nodes
    lines = [
        f"{out}/model.onnx: {bundle.embedding_dim}-d embeddings, {bundle.spec.describe()}",
        f"  {summary.parameters:,} parameters, {summary.macs / 1e6:.1f} M multiply-adds,"
        f" {nodes.before} -> {nodes.after} nodes",
        f"  the same function: cosine at least {check.min_cosine:.7f},"
        f" largest difference {check.max_abs_difference:.2g}",
        f"  FP16 model: cosine at least {summary.fp16.check.min_cosine:.6f}"
        if summary.fp16
        else "  no FP16 model",
        f"next: fr-edge calibrate {out} --faces SRC",
    ]
    document = {
        "bundle": out,
        "file": "model.onnx",
        "input": bundle.spec.to_json(),
        **to_builtins(summary),
    }
    output.result(document, "\n".join(lines))
