"""`fr-edge inspect`: the content of a bundle or an ONNX file, and whether it is intact and current."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .command import define_command
from .output import Output, one_line, size_text, table

if TYPE_CHECKING:
    from ..bundle.manifest import Bundle
    from ..bundle.trust import SignatureRow
    from ..graph.layers import ModelSummary
    from ..runtime.evaluation.stored_reports import ReportRow


@define_command("inspect", example="fr-edge inspect mine.bundle")
@click.argument("source", metavar="SOURCE")
@click.option("--layers", is_flag=True, help="Show each layer.")
@click.option(
    "--names",
    metavar="SRC",
    help="Name the faces behind the numbers in reports: the faces or the pair list they were of.",
)
def command(output: Output, source: str, layers: bool, names: str | None) -> None:
    """Show what a bundle holds, and check its hashes.

    Input contract, files, sizes, parameters, multiply-adds, history, and the reports: each with its
    verdict, what it judged, and whether the bundle still holds that. Exit code 4 when a file is missing
    or was changed. SOURCE may be an ONNX file. `fr-edge check` looks at hashes, engines and reports alone.
    """
    from ..documents import to_builtins
    from ..graph.layers import summarize_model

    if Path(source).is_file():
        model = summarize_model(source, side_files=True)
        output.result(to_builtins(model), "\n".join(_model_lines(model, layers)))
    else:
        _bundle(output, source, layers, names)


def _bundle(output: Output, bundle: str, layers: bool, source: str | None) -> None:
    from ..bundle.bundle import open_bundle, problems
    from ..bundle.derived import stale_reports
    from ..bundle.pack_format import unlisted_files
    from ..bundle.trust import list_signatures
    from ..documents import to_builtins
    from ..errors import BundleError
    from ..faces.stored_detector import DETECTOR_SPEC, read_detector_spec
    from ..graph.layers import summarize_model
    from ..runtime.evaluation.stored_reports import list_reports

    opened = open_bundle(bundle, check="manifest")
    damages, stale = list(problems(opened)), stale_reports(opened)
    reports = () if damages else list_reports(opened)
    stale |= {row.file: row.stale for row in reports if row.stale}
    unlisted = list(unlisted_files(opened))
    signatures: tuple[SignatureRow, ...] = ()
    try:
        signatures = list_signatures(opened)
    except BundleError as error:
        damages.append(error.message)
    model = None
    if "model.onnx" in opened and not damages:
        model = summarize_model(opened.file("model.onnx"))
    names = _names(opened, source) if source and not damages else {}
    detector = None
    if DETECTOR_SPEC in opened and not damages:
        detector = read_detector_spec(opened.file(DETECTOR_SPEC))
    document = {
        "bundle": bundle,
        "input": opened.spec,
        "embedding_dim": opened.embedding_dim,
        "files": opened.files,
        "reports": reports,
        "stale": stale,
        "history": opened.history,
        "model": model,
        "detector": detector,
        "problems": damages,
        "unlisted": unlisted,
        "signatures": signatures,
        "names": names,
    }
    rows = [
        [name, entry.role, size_text(entry.size), entry.sha256[:12]]
        for name, entry in opened.files.items()
    ]
    lines = [
        f"{bundle}: {opened.embedding_dim}-d embeddings, {opened.spec.describe()}",
        *(_model_lines(model, layers) if model else []),
        *([f"detector.onnx: {detector.describe()}"] if detector else []),
        "",
        table(rows, ("file", "role", "size", "sha256")),
        "",
        *report_lines(reports),
        *[f"{number} is {name}" for number, name in names.items()],
        *[_stage(entry) for entry in opened.history],
        *_last_change(opened.history),
        *[one_line(f"stale: {name}: {reason}") for name, reason in stale.items()],
        *[one_line(f"not part of the bundle: {name}") for name in unlisted],
        *[_signature(row, len(opened.files)) for row in signatures],
    ]
    if damages:
        output.note("\n".join(lines))
        raise BundleError("; ".join(damages), "restore the file, or run its stage again")
    lines += ["", "all hashes match"]
    output.result(to_builtins(document), "\n".join(lines))


def _names(bundle: "Bundle", source: str) -> dict[str, str]:
    """The faces behind the numbers in the bundle's reports, for the user who wrote those."""
    from ..bundle.derived import is_report
    from ..faces.face_numbers import numbered_faces
    from ..reading import read_file

    is_list = Path(source).suffix.lower() in (".csv", ".bin", ".txt")
    faces, pairs = options.load_judged(*(None, source) if is_list else (source, None))
    judged = pairs.faces if pairs else faces
    reports = [bundle.file(name) for name in bundle.files if is_report(name)]
    texts = [read_file(path, "JSON_MB").decode("utf-8", "replace") for path in reports]
    return numbered_faces("\n".join(texts), judged.keys if judged else ())


def report_lines(reports: "Sequence[ReportRow]") -> Iterator[str]:
    """Each report with its verdict, what it judged, and whether the bundle still holds that."""
    if not reports:
        return
    rows = [
        [
            Path(row.file).stem,
            row.verdict,
            f"{row.engine} {row.judged} on {row.backend}",
            row.protocol,
            row.faces,
            "stale" if row.stale else "current",
        ]
        for row in reports
    ]
    yield table(rows, ("report", "verdict", "judged", "protocol", "on", "state"))
    yield ""


def _signature(row: "SignatureRow", files: int) -> str:
    signer = f"{row.name} ({row.key})" if row.name else row.key
    trust = "trusted" if row.trusted else "not trusted here, not checked"
    return f"signed by {signer}, {trust}: {row.files} of {files} files"


def _last_change(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the last stage removed and what it made stale."""
    last = history[-1] if history else {}
    for verb, key in (("removed", "removed"), ("made stale", "stale")):
        for name, reason in last.get(key, {}).items():
            yield one_line(f"{last['stage']} {verb} {name}: {reason}")


def _model_lines(model: "ModelSummary", layers: bool) -> list[str]:
    shares = ", ".join(
        f"{100 * macs / model.macs:.1f} % {name.upper()}"
        for name, macs in model.macs_by_precision.items()
    )
    lines = [
        f"{Path(model.file).name}: {model.parameters:,} parameters, {model.macs / 1e6:.1f} M"
        f" multiply-adds ({shares}), opset {model.opset}, {size_text(model.size)}"
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
            for layer in model.layers
        ]
        lines += ["", table(rows, head)]
    return lines


def _stage(entry: Mapping[str, Any]) -> str:
    options = ", ".join(
        f"{key}={value}"
        for key, value in entry.get("options", {}).items()
        if not isinstance(value, dict | list)
    )
    return one_line(f"{entry.get('time', '')}  {entry.get('stage', '')} {options}".rstrip())
