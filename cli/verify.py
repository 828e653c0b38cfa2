"""`fr-edge verify`: does the engine still tell people apart as the original does?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from . import options
from .command import define_command
from .detector_stages import refuse_for_photos, verify_photos
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
    from ..metrics.intervals import TarInterval
    from ..runtime.evaluation.gallery import GalleryAdvice
    from ..runtime.evaluation.result import VerifyResult


_OF_FACES = ("min_cosine", "p1_cosine", "max_stratum_drop", "min_accuracy", "max_eer")
_OF_PHOTOS = ("max_detector_recall_loss", "max_landmark_shift")


@define_command(
    "verify",
    example="fr-edge verify mine.bundle --engine int8 --pairs faces/pairs.csv",
    option_groups={
        "Faces": (
            "--faces",
            "--pairs",
            "--columns",
            "--groups",
            "--degrade",
            "--keep-names",
        ),
        "Photographs": (
            "--photos",
            "--detector-engine",
            "--max-detector-recall-loss",
            "--max-landmark-shift",
        ),
        "Compared with": (
            "--reference",
            "--teacher",
        ),
        "Gates": (
            "--min-cosine",
            "--p1-cosine",
            "--max-tar-drop",
            "--max-stratum-drop",
            "--min-tar",
            "--min-accuracy",
            "--max-eer",
            "--min-kept-tar",
            "--max-kept-far",
            "--far",
            "--policy",
            "--junit",
        ),
        "Signatures": ("--sign", "--require-signature", "--trust"),
    },
)
@click.argument("bundle", metavar="[BUNDLE]", required=False)
@click.option(
    "--package",
    metavar="DIR",
    help="Run a package's own check instead, and write its certificate.",
)
@click.option(
    "--engine",
    type=options.EngineName(auto=False),
    default="int8",
    show_default=True,
    help="The engine to judge; int8-crop and int8-frame name what it takes too.",
)
@options.backend
@options.device
@options.sign(what="Sign the report with this ed25519 private key")
@options.require_signature
@options.artifact
@options.faces(what="Faces of people to judge on, one folder per identity")
@options.photos(what="Judge the whole chain with the bundle's detector")
@click.option(
    "--detector-engine",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="The detector's engine to judge; auto takes int8, else fp16, else fp32, of those that were"
    " built.",
)
@click.option(
    "--max-detector-recall-loss",
    type=float,
    metavar="X",
    help="Gate: share of the FP32 detector's faces that are missed.  [default: 0.02]",
)
@click.option(
    "--max-landmark-shift",
    type=float,
    metavar="X",
    help="Gate: median shift of the landmarks, pixels of the aligned face.  [default: 1]",
)
@click.option("--pairs", metavar="FILE", help="Judge on this pair list (fold,path1,path2,same).")
@options.columns
@click.option("--reference", metavar="FILE.npz", help="The original's embeddings of those faces.")
@click.option(
    "--teacher",
    metavar="FILE.npz",
    help="Embeddings of another model: can its enrolled gallery be kept?",
)
@click.option("--min-cosine", type=float, metavar="X", help="Gate: the worst face's cosine.")
@click.option("--p1-cosine", type=float, metavar="X", help="Gate: 99 % of the faces' cosines.")
@click.option("--max-tar-drop", type=float, metavar="X", help="Gate: loss of TAR at --far.")
@click.option("--max-stratum-drop", type=float, metavar="X", help="Gate: loss in any kind of face.")
@options.absolute_gates
@click.option(
    "--min-kept-tar", type=float, metavar="X", help="Gate: TAR if the old threshold is kept."
)
@click.option(
    "--max-kept-far", type=float, metavar="X", help="Gate: FAR if the old threshold is kept."
)
@options.far
@options.policy
@click.option("--groups", metavar="FILE.csv", help="path,group: judge each group of faces too.")
@click.option("--keep-names", is_flag=True, help="Name faces in the report; by default numbers.")
@click.option("--degrade", is_flag=True, help="Judge small, blurred, noisy and dark copies too.")
@options.junit
def command(
    output: Output,
    bundle: str | None,
    package: str | None,
    engine: str,
    backend: str,
    sign: str | None,
    artifact: Literal["engine", "graph"],
    faces: str | None,
    photos: str | None,
    detector_engine: str,
    pairs: str | None,
    columns: list[str] | None,
    reference: str | None,
    teacher: str | None,
    policy: str | None,
    groups: str | None,
    keep_names: bool,
    degrade: bool,
    junit: str | None,
    **limits: float | None,
) -> None:
    """Compare an engine with the original network.

    Without faces the bundle's golden ones are compared; with --faces or --pairs, true accept rates
    (TAR) at false accept rates (FAR) too. --reference is a file of `fr-edge embed --backend torch`
    by this bundle's own network; --teacher is one by another network, and shows whether people
    enrolled with it may stay. The verdict is PASSED, FAILED or CANNOT JUDGE: a gate on people holds
    when its whole 95 % interval does. Exit code 1 for FAILED and CANNOT JUDGE. The report has numbers
    for faces' names, which `fr-edge inspect BUNDLE --names SRC` turns back for you alone.

    --photos judges from the photograph to the decision: faces that the bundle's detector misses against
    its FP32 model, how far landmarks move, and TAR of the whole chain against the host's in FP32, split
    into what detection, network and alignment each cost.

    --package takes a folder of `fr-edge package` in place of a bundle: what of it can run on this
    machine embeds the golden faces, and the result is written to certificate.json there.
    """
    if package is not None:
        _verify_package(output, package)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE'.", click.get_current_context())
    if photos:
        refuse_for_photos(
            faces=faces, pairs=pairs, columns=columns, reference=reference, teacher=teacher,
            groups=groups, degrade=degrade, keep_names=keep_names,
            **{name: limits.pop(name) for name in _OF_FACES},
        )  # fmt: skip
        verify_photos(
            output, bundle, photos, junit, engine=engine, detector=detector_engine,
            backend=backend, artifact=artifact, policy=Path(policy) if policy else None, **limits,
        )  # fmt: skip
        return
    of_photos = {name: limits.pop(name) for name in _OF_PHOTOS}
    if detector_engine != "auto" or any(value is not None for value in of_photos.values()):
        raise click.UsageError(
            "--detector-engine, --max-detector-recall-loss and --max-landmark-shift need --photos DIR"
        )
    from ..documents import to_builtins
    from ..faces.face_numbers import with_names
    from ..runtime.evaluation.verify import verify

    options.check_junit(junit)
    key = options.load_signing_key(sign)
    source, listed = options.load_judged(faces, pairs, columns)
    result, unstored = stored_or_not(
        lambda: verify(
            bundle,
            engine,
            backend=backend,
            artifact=artifact,
            faces=source,
            pairs=listed,
            reference=Path(reference) if reference else None,
            teacher=Path(teacher) if teacher else None,
            policy=Path(policy) if policy else None,
            groups=Path(groups) if groups else None,
            degrade=degrade,
            keep_names=keep_names,
            name=options.source_name(pairs or faces),
            track=output.track,
            **limits,
        )
    )
    judged = listed.faces if listed else source
    keys = judged.keys if judged else ()
    output.result(to_builtins(result), with_names(_text(bundle, result), keys))
    title = judged_title(result, judged_text(result))
    write_junit(junit, "verify", title, result.gates, result.reasons, result.not_measured)
    output.check_stored(unstored)
    if key:
        from ..bundle.bundle import open_bundle
        from ..bundle.signature import add_signature

        add_signature(open_bundle(bundle, check="manifest"), [result.report], key)
    if not result.passed:
        output.fail_gate(with_names(failure_text(result.verdict, result.reasons), keys))


def _verify_package(output: Output, folder: str) -> None:
    from ..documents import to_builtins
    from ..runtime.packages.verify_package import verify_package

    context = click.get_current_context()
    typed = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("package", "as_json", "quiet", "verbose")
        and context.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
    ]
    if typed:
        raise click.UsageError(f"--package takes no other options, found {typed[0]}", context)
    result, unstored = stored_or_not(lambda: verify_package(folder))
    lines = [f"{folder}: package for {result.target}, {result.precision}"]
    for proof in result.proofs:
        cosine = "not a number" if proof.min_cosine is None else f"{proof.min_cosine:.7f}"
        lines.append(
            f"  {proof.verdict}: {proof.program}: {proof.faces} golden faces, lowest cosine {cosine}"
            f" (limit {result.min_cosine:g})"
        )
    lines += [f"  not measured: {note}" for note in result.not_measured]
    for name, report in result.bundle_certificates.items():
        lines.append(f"  the bundle's {name}: {report['stale'] or report['verdict']}")
    if not result.bundle_certificates:
        lines.append("  the bundle itself had no report of `fr-edge verify`: it is not certified")
    lines.append(f"{result.verdict}: the package gives the bundle's embeddings")
    if not result.passed:
        lines[-1] = f"{result.verdict}: the package does not give the bundle's embeddings here"
    output.result(to_builtins(result), "\n".join(lines))
    output.check_stored(unstored)
    if not result.passed:
        output.fail_gate(lines[-1])


def _text(bundle: str, result: "VerifyResult") -> str:
    cosine, faces = result.cosine, result.faces
    where = f"{faces.count} faces of {faces.identities} people" if faces else "golden faces"
    lines = [
        f"{bundle}: {result.engine} on {result.backend}, {where}",
        f"  {artifact_text(result.artifact, result.backend)}",
        f"  against {result.reference}",
        f"  cosine: mean {cosine.mean:.5f}, p1 {cosine.p1:.5f}, min {cosine.min:.5f}",
    ]
    rows = [
        [
            f"{far} *" if rate.low_confidence else far,
            _rate(rate.reference),
            _rate(rate.engine),
            _rate(rate.delta, signed=True),
            _interval(rate.interval_95),
        ]
        for far, rate in result.tar.items()
    ]
    if rows:
        head = ("FAR", "TAR original", f"TAR {result.engine}", "change", "95 % interval of it")
        lines.append(table(rows, head))
        if any(rate.low_confidence for rate in result.tar.values()):
            lines.append("* depends on fewer than 10 impostor pairs")
        lines += _thresholds(result)
    lines += [f"found: {finding}" for finding in result.findings]
    if result.gallery:
        lines.append(_gallery("the original", result.gallery))
    if result.teacher:
        lines.append(_gallery(f"the teacher ({result.teacher.file})", result.teacher.gallery))
    lines.append(gates_text(result.gates))
    lines += [f"not measured: {note}" for note in result.not_measured]
    if result.report:
        lines.append(f"report: {result.report}")
    lines += _verdict_lines(result)
    return "\n".join(lines)


def _verdict_lines(result: "VerifyResult") -> Iterator[str]:
    """The verdict with what it is about, or with its reasons and their cures."""
    yield from reason_lines(result.reasons)
    yield f"{verdict_text(result.verdict, result.judged)}: {judged_text(result)}"


def judged_text(result: "VerifyResult") -> str:
    """What a verdict is about: the golden faces' embeddings alone, or people."""
    faces = result.faces
    if faces is None:
        return (
            f"embeddings of {result.cosine.faces} golden faces, compared with the original's;"
            " people were not judged"
        )
    synthetic = "synthetic " if faces.synthetic else ""
    return f"{faces.count} {synthetic}faces of {faces.identities} people"


def _thresholds(result: "VerifyResult") -> Iterator[str]:
    """The threshold to set, and the kind of face that loses most, at a FAR that the pairs hold."""
    far = result.strata_far
    if far is None:
        return
    threshold, kept = result.tar[far].threshold, result.tar[far].threshold_kept
    yield (
        f"match threshold at FAR {far}: original {threshold.reference:.4f}, engine"
        f" {threshold.engine:.4f}; not moved, the engine has TAR {kept.tar:.4f} at FAR"
        f" {kept.far:.2g}"
    )
    strata = [s for s in (*result.strata, *result.degraded) if s.drop is not None]
    if strata:
        worst = max(strata, key=lambda stratum: stratum.drop or 0.0)
        points = round(100 * (worst.drop or 0.0), 2)
        yield (
            f"kind of face that loses most: {worst.name}, {-points:+.2f} points of"
            f" {worst.pairs:,} genuine pairs"
            if points > 0
            else "kind of face that loses most: none loses true accepts"
        )


def _rate(value: float | None, *, signed: bool = False) -> str:
    return "not measured" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"


def _gallery(enrolled: str, advice: "GalleryAdvice | None") -> str:
    if advice is None:
        return f"people enrolled with {enrolled}: not measured, too few pairs"
    ends = (
        ""
        if advice.interval_95 is None
        else " ({:+.2f} to {:+.2f})".format(*(100 * end for end in advice.interval_95))
    )
    return (
        f"people enrolled with {enrolled}: {advice.verdict}; at FAR {advice.far} the TAR is"
        f" {100 * advice.delta:+.2f} points{ends}, at threshold {advice.threshold:.4f}"
    )


def _interval(interval: "TarInterval | None") -> str:
    return "" if interval is None else "{:+.4f} to {:+.4f}".format(*interval.delta)
