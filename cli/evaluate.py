"""`fr-edge evaluate`: how well an engine tells people apart, on a protocol."""

import re
from pathlib import Path
from typing import Any

import click

from ..cli import options
from .command import define_command
from .output import Output, table


def pooled(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[bool, bool, bool] | None:
    """`N1D0F1` -> (True, False, True)."""
    if text is None:
        return None
    found = re.fullmatch(r"N([01])D([01])F([01])", text, re.ASCII)
    if not found:
        raise click.BadParameter(f"expected N, D and F with 0 or 1, as N1D1F1, found {text!r}")
    return found[1] == "1", found[2] == "1", found[3] == "1"


@define_command(
    "evaluate", example="fr-edge evaluate mine.bundle --protocol faces/pairs.csv --engine int8"
)
@options.bundle
@click.option(
    "--protocol",
    required=True,
    metavar="FILE|DIR",
    help="A pair list (.csv, .bin, pairs.txt), an IJB folder, or faces: one folder per identity.",
)
@options.faces(what="Where the images of a pair list are, if not beside it")
@click.option("--flip", is_flag=True, help="Add the mirror image's embedding, as papers do.")
@click.option(
    "--ijb",
    "flags",
    metavar="N1D1F0",
    callback=pooled,
    help="IJB: images count by norm (N), detector's score (D), with mirror image (F). [N1D1F0]",
)
@options.engine()
@options.backend
def command(
    output: Output,
    bundle: str,
    protocol: str,
    faces: str | None,
    flip: bool,
    flags: tuple[bool, bool, bool] | None,
    engine: str,
    backend: str,
) -> None:
    """Measure how well an engine tells people apart.

    10-fold accuracy on a pair list, and TAR at each FAR over all pairs of its images.
    One crop, no flip unless asked for. A FAR that the impostor pairs cannot resolve is "not measured".
    Each protocol keeps its own report in the bundle.
    """
    from ..faces.ijb import is_ijb
    from ..faces.pairs import read_pairs
    from ..runtime.evaluation.evaluate import evaluate

    if is_ijb(Path(protocol)):
        _ijb(output, bundle, protocol, engine, backend, flags or (True, True, flip))
        return
    if flags is not None:
        raise click.UsageError(f"--ijb is for IJB folders, and {protocol} is none")
    is_list = Path(protocol).suffix.lower() in (".csv", ".bin", ".txt")
    judged = read_pairs(protocol, faces) if is_list else options.open_source(output, protocol)
    found = evaluate(bundle, judged, engine, backend, output.track, flip=flip, name=_name(protocol))
    document = found.to_json()
    output.result(document, _text(bundle, document))


def _name(protocol: str) -> str:
    """`lfw` of `sets/lfw.bin`; a folder's own name, wherever it is looked at from."""
    if protocol.startswith("synthetic:"):
        return protocol
    path = Path(protocol).resolve()
    return path.name if path.is_dir() else path.stem


def _ijb(
    output: Output,
    bundle: str,
    folder: str,
    engine: str,
    backend: str,
    flags: tuple[bool, bool, bool],
) -> None:
    from ..faces.ijb import read_ijb
    from ..runtime.evaluation.evaluate import evaluate_ijb

    norm, detector, flip = flags
    found = evaluate_ijb(
        bundle,
        read_ijb(Path(folder)),
        engine,
        backend,
        output.track,
        norm=norm,
        detector=detector,
        flip=flip,
        name=_name(folder),
    ).to_json()
    pairs, protocol = found["pairs"], found["protocol"]
    rows = [[far, _number(tar)] for far, tar in found["tar_at_far"].items()]
    lines = [
        f"{bundle}: {found['engine']} on {found['backend']}, IJB 1:1, {protocol['flags']},"
        f" {protocol['images']:,} images in {protocol['templates']:,} templates",
        f"  {pairs['genuine']:,} genuine and {pairs['impostor']:,} impostor pairs",
        table(rows, ("FAR", "TAR")),
        *found["notes"],
    ]
    output.result(found, "\n".join(lines))


def _text(bundle: str, found: dict[str, Any]) -> str:
    pairs, protocol = found["pairs"], found["protocol"]
    lines = [
        f"{bundle}: {found['engine']} on {found['backend']}, {protocol['faces']} faces of"
        f" {protocol['identities']} people",
        f"  accuracy {100 * found['accuracy']:.2f} % +- {100 * found['accuracy_std']:.2f} over"
        f" {protocol['pairs']} pairs ({protocol['kind']}), EER {100 * found['eer']:.2f} %",
        f"  by insightface's 400 thresholds {100 * found['accuracy_insightface']['mean']:.2f} % +-"
        f" {100 * found['accuracy_insightface']['std']:.2f}",
        f"  all pairs: {pairs['genuine']:,} genuine, {pairs['impostor']:,} impostor",
    ]
    rows = [
        [far, _number(tar), _ends(found["interval_95_at_far"].get(far))]
        + [_number(found["threshold_at_far"][far])]
        for far, tar in found["tar_at_far"].items()
    ]
    lines.append(table(rows, ("FAR", "TAR", "95 % interval", "at cosine")))
    if one_to_many := found["identification"]:
        lines.append(_identification(one_to_many))
    return "\n".join([*lines, *found["notes"]])


def _identification(found: dict[str, Any]) -> str:
    rates = [f"{fpir} {_number(tpir)}" for fpir, tpir in found["tpir_at_fpir"].items() if tpir]
    return (
        f"one to many: rank 1 {_number(found['rank1'])} of {found['probes']} probes among"
        f" {found['gallery']} people; TPIR at FPIR {', '.join(rates) or 'not measured'}"
        f" ({found['strangers']} strangers)"
    )


def _ends(interval: list[float] | None) -> str:
    return "" if interval is None else "{:.4f} to {:.4f}".format(*interval)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
