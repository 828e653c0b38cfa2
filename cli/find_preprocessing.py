"""`fr-edge find-preprocessing`: the input contract that a network was trained with."""

import click

from . import options
from .command import define_command
from .output import Output, table

_SHOWN = 10  # contracts


@define_command(
    "find-preprocessing",
    example="fr-edge find-preprocessing backbone.onnx --faces faces/judging",
)
@click.argument("source", metavar="SOURCE")
@options.faces(required=True, what="Faces of several people with several images each")
@click.option("--limit", default=160, show_default=True, metavar="N", help="Faces at most.")
def command(output: Output, source: str, faces: str, limit: int) -> None:
    """Find the input contract that a network was trained with.

    SOURCE is a bundle or an ONNX file. RGB and BGR, the usual means and stds, layouts and flips are
    tried; the right contract separates people best. Exit code 1 when the declared contract is
    wrong.
    """
    from ..documents import to_builtins
    from ..export.preprocessing_search import find_preprocessing

    result = find_preprocessing(source, options.load_faces(faces), limit=limit, track=output.track)
    rows = [
        [
            f"{c.d_prime:.2f}",
            f"{c.channels} {c.name}",
            c.view,
            "tie" if c.tied and c is not result.best else "",
        ]
        for c in result.ranking[:_SHOWN]
    ]
    lines = [
        table(rows, ("d'", "contract", "faces", "")),
        f"{result.images} faces of {result.identities} people: {result.verdict}",
    ]
    output.result(to_builtins(result), "\n".join(lines))
    if result.right is False:
        output.fail_gate("the declared input contract is wrong")
