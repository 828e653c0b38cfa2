"""`fr-edge evaluate`: how well an engine tells people apart, on a protocol."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from . import options
from .command import define_command
from .output import Output, stored_or_not, table
from .verdict_text import (
    artifact_text,
    failure_text,
    gates_text,
    judged_title,
    reason_lines,
    verdict_text,
    write_junit,
)

if TYPE_CHECKING:
    from ..metrics.identification import IdentificationResult
    from ..runtime.evaluation.result import EvaluateResult, IjbResult


def _pooling(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[bool, bool, bool] | None:
    """`N1D0F1` -> (True, False, True)."""
    if text is None:
        return None
    match = re.fullmatch(r"N([01])D([01])F([01])", text, re.ASCII)
    if not match:
        raise click.BadParameter(f"expected N, D and F with 0 or 1, as N1D1F1, found {text!r}")
    return match[1] == "1", match[2] == "1", match[3] == "1"


@define_command(
    "evaluate",
    example="fr-edge evaluate mine.bundle --protocol faces/pairs.csv --engine int8",
    option_groups={
        "Faces": ("--protocol", "--photos", "--faces", "--columns", "--flip", "--ijb"),
        "Engine": ("--engine", "--backend", "--device", "--artifact"),
        "Gates": ("--min-tar", "--min-accuracy", "--max-eer", "--far", "--policy", "--junit"),
        "Signatures": ("--require-signature", "--trust"),
    },
)
@options.bundle
@click.option(
    "--protocol",
    metavar="FILE|DIR",
    help="A pair list (.csv, .bin, pairs.txt), an IJB folder, or faces: one folder per identity.",
)
@options.photos(what="In place of --protocol")
@options.faces(what="Where the images of a pair list are, if not beside it")
@options.columns
@click.option("--flip", is_flag=True, help="Add the mirror image's embedding, as papers do.")
@click.option(
    "--ijb",
    "flags",
    metavar="N1D1F0",
    callback=_pooling,
    help="IJB: images count by norm (N), detector's score (D), with mirror image (F). [N1D1F0]",
)
@options.absolute_gates
@options.far
@options.policy
@options.junit
@options.engine()
@options.backend
@options.device
@options.require_signature
@options.artifact
def command(
    output: Output,
    bundle: str,
    protocol: str | None,
    photos: str | None,
    faces: str | None,
    columns: list[str] | None,
    flip: bool,
    flags: tuple[bool, bool, bool] | None,
    policy: str | None,
    junit: str | None,
    engine: str,
    backend: str,
    artifact: Literal["engine", "graph"],
    **limits: float | None,
) -> None:
    """Measure how well an engine tells people apart.

    10-fold accuracy on a pair list, and TAR at each FAR over all pairs of its images.
    One crop, no flip unless asked for. A FAR that the impostor pairs cannot resolve is "not measured".
    Each protocol keeps its own report in the bundle. Gates hold when their whole 95 % interval does;
    exit code 1 when one is FAILED or CANNOT JUDGE.
    Processes that torchrun starts (RANK and WORLD_SIZE) share the images, and rank 0 has the result.
    """
    from ..bundle.bundle import open_bundle
    from ..documents import to_builtins
    from ..faces.ijb import Ijb, is_ijb, read_ijb
    from ..faces.pairs import Pairs, read_pairs
    from ..faces.sources import Faces
    from ..runtime.evaluation.evaluate import evaluate, evaluate_ijb
    from ..runtime.evaluation.rank_embedding import evaluate_share

    if bool(protocol) == bool(photos):
        raise click.UsageError("give --protocol FILE|DIR or --photos DIR")
    ranks = options.rank_share(photos)

    def embed_rank_share(judged: Pairs | Faces | Ijb, mirrored: bool) -> None:
        evaluate_share(
            bundle,
            judged,
            engine,
            backend,
            artifact=artifact,
            flip=mirrored,
            policy=Path(policy) if policy else None,
            ranks=ranks,
        )

    options.check_junit(junit)
    name, also = options.source_name(protocol or photos), tuple[str, ...]()
    if protocol and is_ijb(Path(protocol)):
        if limits["min_accuracy"] is not None or limits["max_eer"] is not None:
            raise click.UsageError("IJB has no accuracy and no EER: gate its --min-tar")
        norm, detector, mirrored = flags or (True, True, flip)
        templates = read_ijb(Path(protocol))
        if ranks.rank:
            embed_rank_share(templates, mirrored)
            return
        ijb, unstored = stored_or_not(
            lambda: evaluate_ijb(
                bundle,
                templates,
                engine,
                backend,
                output.track,
                artifact=artifact,
                norm=norm,
                detector=detector,
                flip=mirrored,
                policy=Path(policy) if policy else None,
                name=name,
                ranks=ranks,
                **limits,
            )
        )
        output.result(to_builtins(ijb), _ijb_text(bundle, ijb))
        _write_junit(junit, ijb)
        output.check_stored(unstored)
        _exit(output, ijb)
        return
    if flags is not None:
        raise click.UsageError(f"--ijb is for IJB folders, and {protocol} is not one")
    is_list = Path(protocol or "").suffix.lower() in (".csv", ".bin", ".txt")
    if columns and not is_list:
        raise click.UsageError(f"--columns is for a pair list, and {protocol or photos} is not one")
    judged: Pairs | Faces
    if photos:
        judged, also = options.photograph_faces(open_bundle(bundle), photos, backend, output)
    else:
        source = protocol or ""
        judged = read_pairs(source, faces, columns) if is_list else options.load_faces(source)
    if ranks.rank:
        embed_rank_share(judged, flip)
        return
    result, unstored = stored_or_not(
        lambda: evaluate(
            bundle,
            judged,
            engine,
            backend,
            output.track,
            artifact=artifact,
            flip=flip,
            policy=Path(policy) if policy else None,
            name=name,
            also=also,
            ranks=ranks,
            **limits,
        )
    )
    output.result(to_builtins(result), _text(bundle, result))
    _write_junit(junit, result)
    output.check_stored(unstored)
    _exit(output, result)


def _write_junit(junit: str | None, result: "EvaluateResult | IjbResult") -> None:
    title = judged_title(result, result.protocol.name)
    write_junit(junit, "evaluate", title, result.gates, result.reasons, result.not_measured)


def _exit(output: Output, result: "EvaluateResult | IjbResult") -> None:
    if result.passed is False:
        output.fail_gate(failure_text(result.verdict, result.reasons))


def _verdict_lines(result: "EvaluateResult | IjbResult") -> list[str]:
    if result.verdict is None:
        return []
    verdict = verdict_text(str(result.verdict), result.judged)
    gates = [gates_text(result.gates)] if result.gates else []
    return [*gates, *reason_lines(result.reasons), verdict]


def _ijb_text(bundle: str, result: "IjbResult") -> str:
    pairs, protocol = result.pairs, result.protocol
    rows = [
        [far, _number(tar), _ends(result.interval_95_at_far.get(far))]
        for far, tar in result.tar_at_far.items()
    ]
    lines = [
        f"{bundle}: {result.engine} on {result.backend}, IJB 1:1, {protocol.flags},"
        f" {protocol.images:,} images in {protocol.templates:,} templates",
        f"  {artifact_text(result.artifact, result.backend)}",
        f"  {pairs.genuine:,} genuine and {pairs.impostor:,} impostor pairs",
        table(rows, ("FAR", "TAR", "95 % interval")),
        *result.notes,
        *([f"report: {result.report}"] if result.report else []),
        *_verdict_lines(result),
    ]
    return "\n".join(lines)


def _text(bundle: str, result: "EvaluateResult") -> str:
    pairs, protocol = result.pairs, result.protocol
    lines = [
        f"{bundle}: {result.engine} on {result.backend}, {protocol.faces} faces of"
        f" {protocol.identities} people",
        f"  {artifact_text(result.artifact, result.backend)}",
        f"  accuracy {100 * result.accuracy:.2f} %{_percent(result.accuracy_interval_95)} over"
        f" {protocol.pairs} pairs ({protocol.kind})",
        f"  EER {100 * result.eer:.2f} %{_percent(result.eer_interval_95)}",
        f"  rates over {pairs.genuine:,} genuine and {pairs.impostor:,} impostor pairs",
    ]
    if legacy := result.accuracy_insightface:
        lines.insert(
            3,
            f"  by insightface's 400 thresholds {100 * legacy.mean:.2f} % +-"
            f" {100 * legacy.std:.2f}",
        )
    rows = [
        [far, _number(tar), _ends(result.interval_95_at_far.get(far))]
        + [_number(result.threshold_at_far[far])]
        for far, tar in result.tar_at_far.items()
    ]
    lines.append(table(rows, ("FAR", "TAR", "95 % interval", "at cosine")))
    if result.identification:
        lines.append(_identification(result.identification))
    lines += result.notes
    if result.report:
        lines.append(f"report: {result.report}")
    lines += _verdict_lines(result)
    return "\n".join(lines)


def _percent(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " ({:.2f} to {:.2f})".format(*(100 * v for v in interval))


def _identification(result: "IdentificationResult") -> str:
    rates = [f"{fpir} {_number(tpir)}" for fpir, tpir in result.tpir_at_fpir.items() if tpir]
    return (
        f"one to many: rank 1 {_number(result.rank1)} of {result.probes} probes among"
        f" {result.gallery} people; TPIR at FPIR {', '.join(rates) or 'not measured'}"
        f" ({result.strangers} strangers)"
    )


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "{:.4f} to {:.4f}".format(*interval)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
