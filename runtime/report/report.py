"""`write_report`: everything a bundle knows about itself, in one HTML file that opens offline.

It reads the manifest and the JSON reports that the other commands left; it measures nothing.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...bundle.bundle import open_bundle, transaction
from ...bundle.manifest import Bundle
from ...errors import BundleError, FacesError, MachineError
from ...faces.sources import Faces, synthetic_faces
from ..benchmark.result import run_label
from ..fingerprint import PRECISIONS, SOURCES
from ..machine.device import describe_device

_HEADLINE_FAR = ("1e-4", "1e-3", "1e-2")


def write_report(bundle: Bundle | str | Path, faces: Faces | None = None) -> Path:
    """Write `report.html` into the bundle and return its path.

    The worst faces are shown as keys; as pictures only where they are drawn, or taken from `faces`
    when somebody asks. Raises MachineError when jinja2 or matplotlib is not installed, BundleError
    for a report in the bundle that cannot be read.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"the report needs the package {error.name}, which is not installed here",
            'install it: pip install "fr-edge[report]"',
        ) from error
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    text = page.render(_facts(bundle, faces))
    with transaction(bundle.root, "report", {}) as draft:
        draft.path("report.html", "report").write_text(text, encoding="utf-8")
    return bundle.root / "report.html"


def _facts(bundle: Bundle, faces: Faces | None) -> dict[str, Any]:
    verified = [
        _verification(report, faces)
        for precision in PRECISIONS[::-1]
        if (report := _read(bundle, f"reports/verify-{precision}.json"))
    ]
    timed = [
        _timing(report)
        for precision in PRECISIONS[::-1]
        if (report := _read(bundle, f"reports/benchmark-{precision}.json"))
    ]
    judged = [
        {"accuracy": None, "accuracy_std": None, "eer": None, **report}  # IJB has none of them
        for precision in PRECISIONS[::-1]
        for name in bundle.files
        if name.startswith(f"reports/evaluate-{precision}") and (report := _read(bundle, name))
    ]
    engines = [
        {"file": name[: -len(".json")], "plot": engine_plot(bundle, fingerprint), **fingerprint}
        for name in bundle.files
        if name.startswith("engines/")
        and name.endswith(".json")
        and (fingerprint := _read(bundle, name))
    ]
    fars = {far for report in judged for far in report["tar_at_far"]}
    return {
        "name": bundle.root.resolve().name,
        "bundle": bundle,
        "version": __version__,
        "verified": verified,
        "timed": timed,
        "judged": judged,
        "fars": sorted(fars, key=float, reverse=True),
        "engines": engines,
        "calibrated": _read(bundle, "reports/calibration.json"),
        "training": _training(_read(bundle, "reports/training.json")),
        "device": describe_device(),
        "missing": _missing(verified, timed, judged, engines),
    }


def engine_plot(bundle: Bundle, fingerprint: Mapping[str, Any]) -> str:
    """Each layer's precision as TensorRT built it, else as the engine's ONNX file says."""
    from ...graph.layers import summarize_model
    from .plots import layer_precision_chart

    source = SOURCES.get(str(fingerprint.get("precision")), "")
    if source not in bundle:
        return ""
    built = fingerprint.get("precisions") or {}
    rows = [
        (layer.name, layer.macs, built.get(layer.name, "merged" if built else layer.precision))
        for layer in summarize_model(bundle.file(source)).layers
        if layer.macs
    ]
    name = f"{fingerprint['precision']} {fingerprint.get('backend', '')}"
    return layer_precision_chart(rows, name) if rows else ""


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    if name not in bundle:
        return {}
    try:
        found = json.loads(bundle.file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle.root / name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.root / name} is not a JSON object")
    return found


def _verification(report: dict[str, Any], faces: Faces | None) -> dict[str, Any]:
    """The report with what the page shows beside it: plots, pictures, the headline TAR."""
    from .plots import cosine_histogram, det_curves, drift_by_kind, roc_curves, score_histogram

    histogram, curves = report["cosine"]["histogram"], report["curves"]
    kinds = [*report["strata"], *report["degraded"]]
    # The FAR that the pairs hold solidly, before one that hangs on a handful.
    wanted = (report.get("strata_far"), *_HEADLINE_FAR)
    far = next((f for f in wanted if report["tar"].get(f, {}).get("delta") is not None), None)
    return {
        "teacher": None,  # which earlier certificates do not have
        **report,
        "headline": {**report["tar"][far], "far": far} if far else None,
        "cosine_plot": cosine_histogram(
            histogram["edges"], histogram["counts"], report["cosine"]["p1"], report["engine"]
        ),
        "kind_plot": drift_by_kind(kinds, report["engine"]) if kinds else "",
        "det_plot": det_curves(curves, report["engine"]) if curves else "",
        "roc_plot": roc_curves(curves, report["engine"]) if curves else "",
        "score_plot": score_histogram(curves, report["engine"]) if curves else "",
        "pictures": _pictures(report, faces),
    }


def _pictures(report: Mapping[str, Any], faces: Faces | None) -> dict[str, str]:
    """Face keys -> PNG data URLs of the worst faces that may be shown."""
    about = report["faces"]
    if faces is None and about and about["drawn"]:
        try:
            faces = synthetic_faces(about["where"])
        except FacesError:
            return {}
    if faces is None:
        return {}
    where = {key: index for index, key in enumerate(faces.keys)}
    worst = [entry["face"] for entry in report["worst"] if entry["face"] in where]
    return {key: _png(faces, where[key]) for key in worst}


def _png(faces: Faces, index: int) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(faces.read(index)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _timing(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its plots; one of an earlier version has no curves."""
    from .plots import MOST_LINES, LatencyLine, latency_curves, speed_over_time

    lines = [
        LatencyLine(
            run_label(run), run["verdict"] == "VALID", run["quantiles_ms"], run["work_over_time_ms"]
        )
        for run in report["runs"]
        if len(run.get("quantiles_ms", ())) > 1
    ]
    return {
        **report,
        "runs": [{**run, "about": run_label(run)} for run in report["runs"]],
        "latency_plot": latency_curves(lines, report["engine"]) if lines else "",
        "speed_plot": speed_over_time(lines, report["engine"]) if lines else "",
        "left_out": max(0, len(lines) - MOST_LINES),
    }


def _training(report: Mapping[str, Any]) -> dict[str, Any]:
    from .plots import training_curve

    curve = [p for p in report.get("curve", ()) if "step" in p and "loss" in p]
    checks = [p for p in report.get("verification", ()) if "step" in p and "accuracy" in p]
    if len(curve) < 2:
        return {}
    plot = training_curve(
        [(p["step"], p["loss"]) for p in curve], [(p["step"], p["accuracy"]) for p in checks]
    )
    return {"plot": plot, "about": {k: v for k, v in report.items() if _plain(v)}}


def _plain(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _missing(
    verified: list[dict[str, Any]], timed: list[Any], judged: list[Any], engines: list[Any]
) -> list[str]:
    missing = [note for report in verified for note in report["not_measured"]]
    if not verified:
        missing.append("agreement with the original network: run `fr-edge verify`")
    if not judged:
        missing.append("accuracy of its own: run `fr-edge evaluate`")
    if not timed:
        missing.append("latency: run `fr-edge benchmark`")
    if not engines:
        missing.append("no engine was built: run `fr-edge build-engine`")
    if not any(run["energy"] for report in timed for run in report["runs"]):
        missing.append("energy: no power sensor that may be read, or no benchmark")
    return list(dict.fromkeys(missing))
