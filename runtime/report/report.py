"""`write_report`: all that a bundle holds about itself, in one HTML file that opens offline.

It reads the manifest and the JSON reports of the other commands; it measures nothing.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...bundle.bundle import open_bundle, transaction
from ...bundle.derived import PAGE
from ...bundle.manifest import Bundle
from ...documents import read_json
from ...errors import BundleError, FacesError, MachineError, ModelError, install_hint
from ...faces.face_numbers import reported_names
from ...faces.sources import Faces, synthetic_faces
from ...files import real_path
from ...graph.layers import summarize_model
from ...onnx_file import read_onnx
from ...reading import printable
from ..benchmark.frame_benchmark import FrameBenchmark
from ..benchmark.result import BenchmarkResult
from ..engine_record import EngineRecord, file_record
from ..evaluation.photograph_result import PhotographResult
from ..evaluation.result import EvaluateResult, IjbResult, VerifyResult
from ..evaluation.stored_reports import Report, list_reports, read_reports
from ..fingerprint import PRECISIONS, engine_source, read_fingerprint
from ..machine.device import describe_device
from ..onnxruntime_session import ONNXRUNTIME
from .plots import (
    INT8_IN_FLOAT,
    MAX_LINES,
    NOT_IN_ENGINE,
    LatencyLine,
    cosine_histogram,
    det_curves,
    drift_by_kind,
    latency_curves,
    layer_precision_chart,
    roc_curves,
    score_histogram,
    speed_over_time,
    tradeoff_plot,
    training_curve,
)
from .tradeoff import compare_engines

_HEADLINE_FARS = ("1e-4", "1e-3", "1e-2")  # the first that the pairs resolve is shown on top


@dataclass
class _Reports:
    """The reports of the bundle's present files with what the page shows of each: plots, pictures."""

    verified: list[dict[str, Any]] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    timed: list[dict[str, Any]] = field(default_factory=list)
    photographs: list[dict[str, Any]] = field(default_factory=list)
    framed: list[dict[str, Any]] = field(default_factory=list)


def write_report(bundle: Bundle | str | Path, faces: Faces | None = None) -> Path:
    """Write `report.html` into the bundle.

    The worst faces are shown as keys; as pictures only where they are synthetic, or taken from
    `faces` when the user asks. Reports of earlier files are listed as stale.

    Args:
        bundle: An open bundle or its folder.
        faces: A source to take the worst faces' pictures from.

    Returns:
        The page's path.

    Raises:
        MachineError: jinja2 or matplotlib is not installed.
        DataError: A report in the bundle is damaged.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"the report needs the package {error.name}, which is not installed here",
            install_hint("report"),
        ) from error
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    try:
        text = printable(_template().render(_page_values(bundle, faces)))
    except (ValueError, TypeError, ArithmeticError, LookupError, jinja2.TemplateError) as error:
        # Each report has the right types; its figures may not fit each other.
        raise BundleError(
            f"a report in {bundle.root} is damaged, its figures do not fit each other: {error}",
            "run verify, evaluate and benchmark again",
        ) from error
    shown = [name for name in bundle.files if name != PAGE]
    with transaction(bundle, "report", {}) as change:
        change.path(PAGE, "report", of=shown).write_text(text, encoding="utf-8")
    return bundle.root / PAGE


@cache
def _template() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")


def _page_values(bundle: Bundle, faces: Faces | None) -> dict[str, Any]:
    reports = _read_reports(bundle, faces)
    engines = [
        _engine(bundle, name, read_fingerprint(bundle, name))
        for name in (file[: -len(".json")] for file in bundle.files if _is_sidecar(file))
        if name in bundle
    ]
    certified = {row["artifact"].file for row in reports.verified if row["artifact"]}
    certified |= {row["detector"].file for row in reports.photographs}
    fars = {far for report in reports.judged for far in report["tar_at_far"]}
    sizes = {name: entry.size for name, entry in bundle.files.items()}
    tradeoff = compare_engines(engines, sizes, reports.verified, reports.timed)
    return {
        "name": real_path(bundle.root).name,
        "bundle": bundle,
        "version": __version__,
        "verified": reports.verified,
        "timed": reports.timed,
        "judged": reports.judged,
        "photographs": reports.photographs,
        "framed": reports.framed,
        "fars": sorted(fars, key=float, reverse=True),
        "engines": engines,
        "tradeoff": tradeoff,
        "tradeoff_plot": tradeoff_plot(tradeoff) if tradeoff and tradeoff.plotted else "",
        "unjudged": [engine for engine in engines if engine["file"] not in certified],
        "earlier": [row for row in list_reports(bundle) if row.stale],
        "calibrated": _read_json(bundle, "reports/calibration.json"),
        "training": _training(_read_json(bundle, "reports/training.json")),
        "device": describe_device(),
        "not_measured": _not_measured(reports, engines),
    }


def _read_reports(bundle: Bundle, faces: Faces | None) -> _Reports:
    """The reports of the bundle's present files by kind, in the order of `_order`."""
    reports = _Reports()
    titles: Counter[tuple[type, str]] = Counter()

    def title(kind: type, name: str) -> str:
        """Unique, because element ids of the plots are made of it."""
        titles[kind, name] += 1
        count = titles[kind, name]
        return name if count == 1 else f"{name} ({count})"

    for stored in read_reports(bundle):
        if stored.stale:
            continue  # a row of the table of earlier reports
        report, facts = stored.report, {"report": stored.file}
        if isinstance(report, VerifyResult):
            reports.verified.append(
                {**_verification(report, faces, title(VerifyResult, _title(report))), **facts}
            )
        elif isinstance(report, PhotographResult):
            reports.photographs.append({**_fields(report), **facts})
        elif isinstance(report, FrameBenchmark):
            reports.framed.append({**_fields(report), **facts})
        elif isinstance(report, BenchmarkResult):
            reports.timed.append(
                {**_timing(report, title(BenchmarkResult, report.engine)), **facts}
            )
        elif isinstance(report, EvaluateResult | IjbResult):
            # IJB has no accuracy
            lacking = {"accuracy": None, "accuracy_std": None, "eer": None}
            reports.judged.append({**lacking, **_fields(report), **facts})
    for group in (
        reports.verified,
        reports.judged,
        reports.timed,
        reports.photographs,
        reports.framed,
    ):
        group.sort(key=_order)
    return reports


def _engine(bundle: Bundle, name: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of engines, and what its own file tells against its name."""
    try:
        record = file_record(bundle, name)
        problem = record.problem() if record else ""
    except (BundleError, ModelError) as error:
        record, problem = None, error.message
    plot = _layer_chart(bundle, fingerprint, record)
    return {**fingerprint, "file": name, "plot": plot, "problem": problem}


def _layer_chart(
    bundle: Bundle, fingerprint: Mapping[str, Any], record: EngineRecord | None
) -> str:
    """Each layer's precision as the engine's own file has it, else as TensorRT reported it, else as its
    ONNX file has it."""
    source = engine_source(fingerprint)
    if source not in bundle:
        return ""
    built = fingerprint.get("precisions") or {}
    outputs: dict[str, str] = {}
    if fingerprint["precision"] == "int8" and fingerprint["backend"] == ONNXRUNTIME:
        outputs = {node.name: node.output[0] for node in read_onnx(bundle.file(source)).graph.node}
    integer = fingerprint.get("integer_layers") or ()
    if record is None or record.integer != len(integer):
        integer = ()
    rows = []
    for layer in summarize_model(bundle.file(source)).layers:
        precision = built.get(layer.name, "merged" if built else layer.precision)
        if precision == "int8" and outputs and outputs.get(layer.name) not in integer:
            own = record is not None and outputs.get(layer.name) in record.weights
            precision = INT8_IN_FLOAT if own else NOT_IN_ENGINE
        if layer.macs:
            rows.append((layer.name, layer.macs, precision))
    name = f"{fingerprint['precision']} {fingerprint['backend']}"
    return layer_precision_chart(rows, name) if rows else ""


def _is_sidecar(name: str) -> bool:
    return name.startswith("engines/") and name.endswith(".json")


def _read_json(bundle: Bundle, name: str) -> dict[str, Any]:
    if name not in bundle:
        return {}
    path = bundle.file(name)
    return read_json(path, dict[str, Any])


def _verification(report: VerifyResult, faces: Faces | None, title: str) -> dict[str, Any]:
    histogram, curves = report.cosine.histogram, report.curves
    kinds = [*report.strata, *report.degraded]
    # The FAR that the pairs hold solidly, before one that depends on a handful of them.
    wanted = (report.strata_far, *_HEADLINE_FARS)
    rates = {far: rate for far, rate in report.tar.items() if rate.delta is not None}
    far = next((far for far in wanted if far in rates), None)
    return {
        **_fields(report),
        "verdict": report.verdict or ("PASSED" if report.passed else "FAILED"),
        "machine": _machine(report.device, report.backend),
        "headline_far": far,
        "headline": rates[far] if far else None,
        "cosine_plot": cosine_histogram(histogram.edges, histogram.counts, report.cosine.p1, title),
        "kind_plot": drift_by_kind(kinds, title) if kinds else "",
        "det_plot": det_curves(curves, title) if curves else "",
        "roc_plot": roc_curves(curves, title) if curves else "",
        "score_plot": score_histogram(curves, title) if curves else "",
        "pictures": _pictures(report, faces),
    }


def _order(row: Mapping[str, Any]) -> tuple[int, bool, int]:
    """INT8 first, engines before graphs, and reports of many faces before those of few."""
    graph = row["artifact"] is not None and row["artifact"].kind == "graph"
    faces = row["cosine"].faces if "cosine" in row else 0
    return -PRECISIONS.index(row["engine"]), graph, -faces


def _fields(report: Report) -> dict[str, Any]:
    return {item.name: getattr(report, item.name) for item in fields(report)}


def _title(report: VerifyResult) -> str:
    """`int8`, or `int8 graph`."""
    graph = report.artifact is not None and report.artifact.kind == "graph"
    return f"{report.engine} graph" if graph else report.engine


def _pictures(report: VerifyResult, faces: Faces | None) -> dict[str, str]:
    """Face keys -> PNG data URLs of the worst faces that may be shown."""
    summary = report.faces
    if faces is None and summary and summary.synthetic:
        try:
            faces = synthetic_faces(summary.where)
        except FacesError:
            return {}
    if faces is None:
        return {}
    index = {key: number for number, key in enumerate(faces.keys)}
    if not faces.synthetic:
        index |= {name: number for number, name in enumerate(reported_names(faces))}
    shown = [worst.face for worst in report.cosine.worst if worst.face in index]
    return {key: _png(faces, index[key]) for key in shown}


def _machine(device: Mapping[str, Any], backend: str) -> str:
    """The board, GPU or CPU that ran a backend."""
    gpu = device.get("gpu") if backend != ONNXRUNTIME else None
    return str(device.get("jetson") or ", ".join(gpu or ()) or device.get("cpu") or "")


def _png(faces: Faces, index: int) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(faces.read(index)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _timing(report: BenchmarkResult, title: str) -> dict[str, Any]:
    lines = [
        LatencyLine(
            run.setting.label, run.verdict == "VALID", run.quantiles_ms, run.work_over_time_ms
        )
        for run in report.runs
        if len(run.quantiles_ms) > 1  # earlier versions have none
    ]
    return {
        **_fields(report),
        "latency_plot": latency_curves(lines, title) if lines else "",
        "speed_plot": speed_over_time(lines, title) if lines else "",
        "left_out": max(0, len(lines) - MAX_LINES),
    }


def _training(report: Mapping[str, Any]) -> dict[str, Any]:
    curve = [p for p in report.get("curve", ()) if "step" in p and "loss" in p]
    checks = [p for p in report.get("verification", ()) if "step" in p and "accuracy" in p]
    if len(curve) < 2:
        return {}
    plot = training_curve(
        [(p["step"], p["loss"]) for p in curve], [(p["step"], p["accuracy"]) for p in checks]
    )
    return {"plot": plot, "about": {k: v for k, v in report.items() if _is_plain(v)}}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _not_measured(reports: _Reports, engines: Sequence[Any]) -> list[str]:
    notes = [note for row in reports.verified for note in row["not_measured"]]
    if not reports.verified:
        notes.append("agreement with the original network: run `fr-edge verify`")
    if not reports.judged:
        notes.append("accuracy of its own: run `fr-edge evaluate`")
    if not reports.timed:
        notes.append("latency: run `fr-edge benchmark`")
    if not engines:
        notes.append("no engine was built: run `fr-edge build-engine`")
    if not any(run.energy for row in reports.timed for run in row["runs"]):
        notes.append("energy: no power sensor that may be read, or no benchmark")
    return list(dict.fromkeys(notes))
