"""`fr-edge align`: photographs to the aligned crops that everything else takes."""

import click

from .output import Output
from .output import command as make


@make("align")
@click.argument("source", metavar="SRC")
@click.option("--out", required=True, metavar="DIR", help="Where to write the 112x112 crops.")
@click.option(
    "--detector", required=True, metavar="FILE.onnx", help="YuNet, or a detector of its layout."
)
@click.option("--min-score", default=0.7, show_default=True, metavar="X", help="Of a face.")
def command(output: Output, source: str, out: str, detector: str, min_score: float) -> None:
    """Align photographs to the ArcFace template.

    SRC is a folder, one folder per identity; names are kept. Of several faces in an image the most
    prominent is taken. Images without a face, or with several, are listed.
    """
    from ..faces.align import align_folder
    from ..faces.detect import open_detector

    found = align_folder(source, out, open_detector(detector, min_score), output.track)
    lines = [f"{out}: {len(found.written)} aligned faces"]
    for what, names in (
        ("no face", found.none),
        ("several faces, the most prominent taken", found.several),
        ("unreadable", tuple(found.unreadable)),
    ):
        lines += [f"  {what}: {name}" for name in names]
    output.result(found.to_json(), "\n".join(lines))
