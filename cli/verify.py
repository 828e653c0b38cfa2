"""`fr-edge verify`: does the engine still tell people apart as the original does?"""

from pathlib import Path
from typing import Any

import click

from . import options
from .output import Output, table
from .output import command as make


@make("verify")
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
@click.option("--min-cosine", type=float, metavar="X", help="Gate: every face's cosine.")
@click.option("--max-tar-drop", type=float, metavar="X", help="Gate: loss of TAR at --far.")
@click.option("--far", type=float, default=1e-4, show_default=True, help="Where TAR is gated.")
def command(
    output: Output,
    bundle: str,
    engine: str,
    backend: str,
    faces: str | None,
    pairs: str | None,
    reference: str | None,
    min_cosine: float | None,
    max_tar_drop: float | None,
    far: float,
) -> None:
    """Hold an engine against the original network.

    Without faces the bundle's golden ones are compared; with --faces or --pairs, true accept rates
    (TAR) at false accept rates (FAR) too. Exit code 1 when a gate fails.
    """
    from ..runtime.verify import verify

    source, listed = options.open_judged(faces, pairs)
    found = verify(
        bundle,
        engine,
        backend=backend,
        faces=source,
        pairs=listed,
        reference=Path(reference) if reference else None,
        min_cosine=min_cosine,
        max_tar_drop=max_tar_drop,
        far=far,
        track=output.track,
    )
    document = found.to_json()
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
        [far, _rate(tar["reference"]), _rate(tar["engine"]), _rate(tar["delta"], signed=True)]
        for far, tar in found["tar"].items()
    ]
    if rows:
        lines.append(table(rows, ("FAR", "TAR original", f"TAR {engine}", "change")))
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


def _rate(value: float | None, *, signed: bool = False) -> str:
    return "not measured" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"
