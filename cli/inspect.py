"""`fr-edge inspect`: what is in a bundle or an ONNX file, and whether it is still what it was."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import define_command
from .output import Output, size_text, table

if TYPE_CHECKING:
    from ..graph.layers import ModelSummary


@define_command("inspect", example="fr-edge inspect mine.bundle")
@click.argument("source", metavar="BUNDLE|FILE.onnx")
@click.option("--layers", is_flag=True, help="A line for each layer.")
def command(output: Output, source: str, layers: bool) -> None:
    """Show what a bundle holds, and check its hashes.

    Contract, files, sizes, parameters, multiply-adds, history. Exit code 4 when a file is missing
    or was changed. An ONNX file is shown without a bundle too.
    """
    from ..documents import to_builtins
    from ..graph.layers import summarize_model

    if Path(source).is_file():
        facts = summarize_model(source)
        output.result(to_builtins(facts), "\n".join(_facts(facts, layers)))
    else:
        _bundle(output, source, layers)


def _bundle(output: Output, bundle: str, layers: bool) -> None:
    from ..bundle.bundle import open_bundle, problems
    from ..documents import to_builtins
    from ..errors import BundleError
    from ..graph.layers import summarize_model

    opened = open_bundle(bundle, check="manifest")
    wrong = list(problems(opened))
    facts = None
    if "model.onnx" in opened and not wrong:
        facts = summarize_model(opened.file("model.onnx"))
    document = {
        "bundle": bundle,
        "input": opened.spec.to_json(),
        "embedding_dim": opened.embedding_dim,
        "files": {name: vars(entry) for name, entry in opened.files.items()},
        "history": [dict(entry) for entry in opened.history],
        "model": to_builtins(facts),
        "problems": wrong,
    }
    rows = [
        [name, entry.role, size_text(entry.size), entry.sha256[:12]]
        for name, entry in opened.files.items()
    ]
    lines = [
        f"{bundle}: {opened.embedding_dim}-d embeddings, {opened.spec.describe()}",
        *(_facts(facts, layers) if facts else []),
        "",
        table(rows, ("file", "what", "size", "sha256")),
        "",
        *[_stage(dict(entry)) for entry in opened.history],
    ]
    if not wrong:
        lines += ["", "all hashes hold"]
        output.result(document, "\n".join(lines))
        return
    output.note("\n".join(lines))
    raise BundleError("; ".join(wrong), "restore the file, or run its stage again")


def _facts(facts: "ModelSummary", layers: bool) -> list[str]:
    shares = ", ".join(
        f"{100 * macs / facts.macs:.1f} % {name.upper()}"
        for name, macs in facts.macs_by_precision.items()
    )
    lines = [
        f"{Path(facts.file).name}: {facts.parameters:,} parameters, {facts.macs / 1e6:.1f} M"
        f" multiply-adds ({shares}), opset {facts.opset}, {size_text(facts.size)}"
    ]
    if layers:
        head = ("layer", "operator", "output", "parameters", "multiply-adds", "precision")
        rows = [
            [
                layer.name,
                layer.op,
                "x".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                layer.precision,
            ]
            for layer in facts.layers
        ]
        lines += ["", table(rows, head)]
    return lines


def _stage(entry: dict[str, Any]) -> str:
    told = ", ".join(
        f"{key}={value}"
        for key, value in entry.get("options", {}).items()
        if not isinstance(value, dict | list)
    )
    return f"{entry.get('time', '')}  {entry.get('stage', '')} {told}".rstrip()
