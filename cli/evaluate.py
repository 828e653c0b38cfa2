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
    help="A pair list (.csv, .bin, pairs.txt), an IJB folder, or faces: one folder per identity.",
)
@options.faces(what="Where the images of a pair list are, if not beside it")
@click.option("--flip", is_flag=True, help="Add the mirror image's embedding, as papers do.")
@options.engine()
@options.backend
def command(
    output: Output,
    bundle: str,
    protocol: str,
    faces: str | None,
    flip: bool,
    engine: str,
    backend: str,
) -> None:
    """Measure how well an engine tells people apart.

    10-fold accuracy on a pair list, and TAR at each FAR over all pairs of its images.
    One crop, no flip unless asked for. A FAR that the impostor pairs cannot resolve is "not measured".
    """
    from ..faces.pairs import read_pairs
    from ..runtime.accuracy.evaluate import evaluate
    from ..runtime.accuracy.ijb import is_ijb

    if is_ijb(Path(protocol)):
        _ijb(output, bundle, protocol, engine, backend, flip)
        return
    is_list = Path(protocol).suffix.lower() in (".csv", ".bin", ".txt")
    judged = read_pairs(protocol, faces) if is_list else options.open_source(output, protocol)
    found = evaluate(bundle, judged, engine=engine, backend=backend, track=output.track, flip=flip)
    document = found.to_json()
    output.result(document, _text(bundle, document))


def _ijb(output: Output, bundle: str, folder: str, engine: str, backend: str, flip: bool) -> None:
    from ..runtime.accuracy.evaluate_ijb import evaluate_ijb
    from ..runtime.accuracy.ijb import read_ijb

    found = evaluate_ijb(
        bundle, read_ijb(Path(folder)), engine, backend, output.track, flip=flip
    ).to_json()
    pairs, protocol = found["pairs"], found["protocol"]
    rows = [[far, _number(tar)] for far, tar in found["tar_at_far"].items()]
    lines = [
        f"{bundle}: {found['engine']} on {found['backend']}, IJB 1:1, {protocol['flags']},"
        f" {protocol['images']:,} images in {protocol['templates']:,} templates",
        f"  {pairs['genuine']:,} genuine and {pairs['impostor']:,} impostor pairs",
        table(rows, ("FAR", "TAR")),
    ]
    output.result(found, "\n".join(lines))


def _text(bundle: str, found: dict[str, Any]) -> str:
    pairs, protocol = found["pairs"], found["protocol"]
    lines = [
        f"{bundle}: {found['engine']} on {found['backend']}, {protocol['faces']} faces of"
        f" {protocol['identities']} people",
        f"  accuracy {100 * found['accuracy']:.2f} % +- {100 * found['accuracy_std']:.2f} over"
        f" {protocol['pairs']} pairs ({protocol['kind']}), EER {100 * found['eer']:.2f} %",
        f"  all pairs: {pairs['genuine']:,} genuine, {pairs['impostor']:,} impostor",
    ]
    rows = [
        [far, _number(tar), _number(found["threshold_at_far"][far])]
        for far, tar in found["tar_at_far"].items()
    ]
    lines.append(table(rows, ("FAR", "TAR", "at cosine")))
    return "\n".join([*lines, *found["notes"]])


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
