"""`fr-edge verify`: does the engine still tell people apart as the original does?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..cli import options
from .command import define_command
from .output import Output, table


@define_command(
    "verify",
    example="fr-edge verify mine.bundle --engine int8 --pairs faces/pairs.csv",
    option_groups={
        "Faces": (
            "--faces",
            "--pairs",
            "--groups",
            "--degrade",
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
            "--far",
            "--policy",
            "--junit",
        ),
    },
)
@options.bundle
@click.option(
    "--engine",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="int8",
    show_default=True,
    help="The engine to judge.",
)
@options.backend
@options.faces(what="Faces of people to judge on, one folder per identity")
@click.option("--pairs", metavar="FILE", help="Judge on this pair list (fold,path1,path2,same).")
@click.option("--reference", metavar="FILE.npz", help="The original's embeddings of those faces.")
@click.option("--teacher", metavar="FILE.npz", help="Another network's, whose gallery shall stay.")
@click.option("--min-cosine", type=float, metavar="X", help="Gate: the worst face's cosine.")
@click.option("--p1-cosine", type=float, metavar="X", help="Gate: 99 % of the faces' cosines.")
@click.option("--max-tar-drop", type=float, metavar="X", help="Gate: loss of TAR at --far.")
@click.option("--max-stratum-drop", type=float, metavar="X", help="Gate: loss in any kind of face.")
@click.option("--far", type=float, metavar="X", help="Where TAR is gated; 1e-4 unless said.")
@click.option("--policy", metavar="FILE.toml", help="Gates from a file, which the bundle keeps.")
@click.option("--groups", metavar="FILE.csv", help="path,group: judge each group of faces too.")
@click.option("--degrade", is_flag=True, help="Judge small, blurred, noisy and dark copies too.")
@click.option("--junit", metavar="FILE.xml", help="Write the gates as JUnit XML too.")
def command(
    output: Output,
    bundle: str,
    engine: str,
    backend: str,
    faces: str | None,
    pairs: str | None,
    reference: str | None,
    teacher: str | None,
    min_cosine: float | None,
    p1_cosine: float | None,
    max_tar_drop: float | None,
    max_stratum_drop: float | None,
    far: float | None,
    policy: str | None,
    groups: str | None,
    degrade: bool,
    junit: str | None,
) -> None:
    """Hold an engine against the original network.

    Without faces the bundle's golden ones are compared; with --faces or --pairs, true accept rates
    (TAR) at false accept rates (FAR) too. --reference is a file of `fr-edge embed --backend torch`
    by this bundle's own network; --teacher is one by another network, and tells if people enrolled
    with that may stay. Exit code 1 when a gate fails.
    """
    from ..files import write_atomic
    from ..runtime.evaluation.result import junit_xml
    from ..runtime.evaluation.verify import verify

    source, listed = options.open_judged(output, faces, pairs)
    found = verify(
        bundle,
        engine,
        backend=backend,
        faces=source,
        pairs=listed,
        reference=Path(reference) if reference else None,
        teacher=Path(teacher) if teacher else None,
        min_cosine=min_cosine,
        p1_cosine=p1_cosine,
        max_tar_drop=max_tar_drop,
        max_stratum_drop=max_stratum_drop,
        far=far,
        policy=Path(policy) if policy else None,
        groups=Path(groups) if groups else None,
        degrade=degrade,
        track=output.track,
    )
    document = found.to_json()
    if junit:
        write_atomic(Path(junit), junit_xml(document).encode())
    output.result(document, _text(bundle, engine, document))
    if not document["passed"]:
        failed = [gate["name"] for gate in document["gates"] if not gate["passed"]]
        output.fail_gate(f"gate failed: {', '.join(failed)}")


def _text(bundle: str, engine: str, found: dict[str, Any]) -> str:
    cosine, faces = found["cosine"], found["faces"]
    of = f"{faces['count']} faces of {faces['identities']} people" if faces else "golden faces"
    lines = [
        f"{bundle}: {engine} on {found['backend']}, {of}",
        f"  against {found['reference']}",
        f"  cosine: mean {cosine['mean']:.5f}, p1 {cosine['p1']:.5f}, min {cosine['min']:.5f}",
    ]
    rows = [
        [
            f"{far} *" if tar["low_confidence"] else far,
            _rate(tar["reference"]),
            _rate(tar["engine"]),
            _rate(tar["delta"], signed=True),
            _interval(tar["interval_95"]),
        ]
        for far, tar in found["tar"].items()
    ]
    if rows:
        head = ("FAR", "TAR original", f"TAR {engine}", "change", "95 % interval of the change")
        lines.append(table(rows, head))
        if any(tar["low_confidence"] for tar in found["tar"].values()):
            lines.append("* hangs on fewer than 10 impostor pairs")
        lines += _told(found)
    lines += [f"found: {what}" for what in found["findings"]]
    if found["gallery"]:
        lines.append(_gallery("the original", found["gallery"]))
    if found["teacher"]:
        who = f"the teacher ({found['teacher']['file']})"
        lines.append(_gallery(who, found["teacher"]["gallery"]))
    rows = [
        [
            "pass" if gate["passed"] else "FAIL",
            gate["name"],
            "not measured" if gate["value"] is None else f"{gate['value']:.5f}",
            f"limit {gate['limit']:g}",
        ]
        for gate in found["gates"]
    ]
    lines.append(table(rows))
    lines += [f"not measured: {what}" for what in found["not_measured"]]
    lines.append("PASSED" if found["passed"] else "FAILED")
    return "\n".join(lines)


def _told(found: dict[str, Any]) -> Iterator[str]:
    """The threshold to set, and the kind of face that loses most, at the FAR that is solid."""
    far = found.get("strata_far")
    if far is None:
        return
    tar = found["tar"][far]
    threshold, kept = tar["threshold"], tar["threshold_kept"]
    yield (
        f"match threshold at FAR {far}: original {threshold['reference']:.4f}, engine"
        f" {threshold['engine']:.4f}; not moved, the engine has TAR {kept['tar']:.4f} at FAR"
        f" {kept['far']:.2g}"
    )
    kinds = [s for s in (*found["strata"], *found["degraded"]) if s["tar"]["delta"] is not None]
    if kinds:
        worst = min(kinds, key=lambda stratum: stratum["tar"]["delta"])
        yield (
            f"kind of face that loses most: {worst['name']}, {100 * worst['tar']['delta']:+.2f}"
            f" points of {worst['pairs']:,} genuine pairs"
        )


def _rate(value: float | None, *, signed: bool = False) -> str:
    return "not measured" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"


def _gallery(who: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return f"people enrolled with {who}: not measured, too few pairs"
    return (
        f"people enrolled with {who}: {found['verdict']}; at FAR {found['far']} the TAR is"
        f" {100 * found['delta']:+.2f} points, at threshold {found['threshold']:.4f}"
    )


def _interval(found: dict[str, list[float]] | None) -> str:
    return "" if found is None else "{:+.4f} to {:+.4f}".format(*found["delta"])
