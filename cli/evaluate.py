"""`fr-edge evaluate`: how well an engine tells people apart, on a protocol."""

from pathlib import Path
from typing import Any

import click

from . import options
from .output import Output, table
from .output import command as make


@make("evaluate")
@options.bundle
@click.option(
    "--protocol",
    required=True,
    metavar="FILE|DIR",
    help="A pair list (.csv, .bin, pairs.txt), or faces: one folder per identity, all pairs.",
)
@options.faces(what="Where the images of a pair list are, if not beside it")
@options.engine()
@options.backend
def command(
    output: Output, bundle: str, protocol: str, faces: str | None, engine: str, backend: str
) -> None:
    """Measure how well an engine tells people apart.

    10-fold accuracy on a pair list, and TAR at each FAR over all pairs of its images.
    One crop, no flip, no fusion. A FAR that the impostor pairs cannot resolve is "not measured".
    """
    from ..runtime.evaluate import evaluate

    is_list = Path(protocol).suffix.lower() in (".csv", ".bin", ".txt")
    source, listed = options.open_judged(
        faces if is_list else protocol, protocol if is_list else None
    )
    judged = listed if listed is not None else source
    found = evaluate(bundle, judged, engine=engine, backend=backend, track=output.track)
    document = found.to_json()
    output.result(document, _text(bundle, document))


def _text(bundle: str, found: dict[str, Any]) -> str:
    pairs = found["pairs"]
    lines = [f"{bundle}: {found['engine']} on {found['backend']}, {found['faces']} faces"]
    if found["accuracy"] is not None:
        lines.append(f"  accuracy {100 * found['accuracy']:.2f} %")
    lines.append(f"  {pairs['genuine']:,} genuine and {pairs['impostor']:,} impostor pairs")
    rows = [
        [far, _number(tar), _number(found["threshold_at_far"][far])]
        for far, tar in found["tar_at_far"].items()
    ]
    lines.append(table(rows, ("FAR", "TAR", "at cosine")))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
