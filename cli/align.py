"""`fr-edge align`: photographs to the aligned crops that the other commands take."""

from typing import TYPE_CHECKING

import click

from .command import define_command
from .output import Output

if TYPE_CHECKING:
    from ..faces.detect import FacePolicy


@define_command(
    "align",
    example="fr-edge align photos --out faces --detector det_10g.onnx",
    option_groups={
        "Detector": ("--detector", "--min-score", "--mean", "--std", "--channels"),
        "Crops": ("--out", "--faces", "--size", "--split", "--antialias", "--workers"),
    },
)
@click.argument("source", metavar="SRC")
@click.option("--out", required=True, metavar="DIR", help="Where to write the crops.")
@click.option(
    "--detector",
    required=True,
    metavar="FILE.onnx",
    help="Network that finds faces and five landmarks.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Smallest score of a face; by default its layout's, 0.5 to 0.7.",
)
@click.option(
    "--mean", metavar="X|A,B,C", help="Subtracted from pixels, where the layout's default is wrong."
)
@click.option("--std", metavar="X|A,B,C", help="Divides after the subtraction.")
@click.option("--channels", metavar="RGB|BGR", help="Channel order.")
@click.option(
    "--faces",
    "policy",
    type=click.Choice(["one", "largest", "central", "all"]),
    default="one",
    show_default=True,
    help="Which faces of an image with several; one writes none of them.",
)
@click.option(
    "--split",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Write this share of the people into DIR/calibration, the others into DIR/judging.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the work, each on one core.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=112,
    show_default=True,
    metavar="N",
    help="Side of the crops in pixels: the network's own.",
)
@click.option(
    "--antialias",
    is_flag=True,
    help="Average large photographs before they are reduced; norm_crop does not.",
)
def command(
    output: Output,
    source: str,
    out: str,
    detector: str,
    min_score: float | None,
    mean: str | None,
    std: str | None,
    channels: str | None,
    policy: "FacePolicy",
    split: float | None,
    workers: int,
    size: int,
    antialias: bool,
) -> None:
    """Align photographs to the ArcFace template.

    The crops are those of insightface's norm_crop, to the grey level. A network of 160 pixels gets
    more of the photograph by --size 160 than by enlarging crops of 112.

    SRC is a folder, one folder per identity; names are kept, the crop of a/b.jpg is a/b.png. Images
    without a face, or with several, are listed; of several faces none is written unless --faces says
    which. With --faces all the crops are a/b.jpg.1.png, a/b.jpg.2.png, ...

    An interrupted run goes on with the images that are left.

    The detector is an ONNX file of YuNet, SCRFD, RetinaFace, YOLO-face (v5, v7, v8 and later),
    CenterFace, or one with suppression inside (boxes, scores, landmarks). It is recognised by the
    shapes of its outputs; the layout and preprocessing are printed.
    """
    from ..documents import to_builtins
    from ..faces.align import align_folder
    from ..faces.detect import open_detector

    opened = open_detector(detector, min_score, mean=mean, std=std, channels=channels)
    report = align_folder(
        source,
        out,
        opened,
        output.track,
        antialias=antialias,
        faces=policy,
        workers=workers,
        split=split,
        size=size,
    )
    several = (
        "several faces, none written (--faces chooses)" if policy == "one" else "several faces"
    )
    lines = [
        f"{out}: {sum(map(len, report.crops.values()))} aligned faces of {size}x{size} pixels",
        f"  detector: {opened.describe()}",
    ]
    for problem, names in (
        ("no face", report.none),
        (several, report.several),
        ("unreadable", tuple(report.unreadable.values())),
    ):
        lines += [f"  {problem}: {name}" for name in names]
    output.result({**to_builtins(report), "detector": opened.describe()}, "\n".join(lines))
