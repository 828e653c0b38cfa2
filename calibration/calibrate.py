"""The stage: faces -> statistics -> table -> Q/DQ model, judged and put into the bundle."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..bundle import Bundle, change, open_bundle
from ..errors import ModelError, UsageError
from ..faces.sources import Faces
from ..progress import Track, silent
from .budget import Budget
from .fitting import Steps, fit_table
from .framing import framing_note
from .histogram import MOST_FACES
from .layers import Choice, choose
from .observe import observe
from .people import look, split
from .quantize import quantize_onnx
from .ranges import METHODS
from .search import Judge, Trial, settle
from .table import CalibrationTable, table_to_json
from .trt_cache import ALGORITHM, TrtCache, activations, cache_text, plain_ranges, version_number

JUDGED = 64
"""Faces of other people that the INT8 model is compared on."""
BUDGET_JUDGED = 2048
"""The same with a budget, whose true accepts need many pairs."""


def calibrate(
    bundle: Bundle | str | Path,
    faces: Faces,
    method: str = "auto",
    limit: int = 512,
    track: Track = silent,
    *,
    steps: Steps = Steps(),  # noqa: B008 (frozen)
    budget: Budget | None = None,
    trt_cache: str | None = None,
) -> Bundle:
    """Write `calibration.json`, `model.int8.onnx` and `reports/calibration.json`.

    `trt_cache`, a TensorRT version, writes `calibration.cache` too, for implicit quantisation: the
    ranges of all activations of the plain network by `method`, entropy for `auto`.

    At most `limit` faces calibrate, spread over the identities; the result is judged on people
    held apart from them. With a `budget`, layers go back to float until it holds, and a search
    that was interrupted goes on where it was.

    Raises UsageError for an unknown method or limit, FacesError for faces that cannot be read, say
    nothing, or are too few for the budget, ModelError for a network that has no dense layer or
    overflows, BundleError without `model.onnx`, GateFailed when no assignment holds the budget.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if method != "auto" and method not in METHODS:
        raise UsageError(
            f"no calibration method {method!r}", f"methods: auto, {', '.join(METHODS)}"
        )
    if not 1 <= limit <= MOST_FACES:
        raise UsageError(f"--limit is 1 to {MOST_FACES}, found {limit}")
    version = version_number(trt_cache) if trt_cache else 0
    model = onnx.load(bundle.file("model.onnx"))
    rule = choose(model)
    if not rule.int8:
        raise ModelError("the model has no dense layer that INT8 could speed up", "build FP16")
    chosen = look(faces, split(faces, limit, BUDGET_JUDGED if budget else JUDGED), track)
    plain = activations(model) if version else ()
    tensors = tuple(dict.fromkeys((*rule.tensors, *plain)))
    seen = observe(model, tensors, bundle.spec, faces, chosen.calibrate, track)
    table = fit_table(
        model,
        rule,
        seen,
        method,
        steps,
        faces=len(chosen.calibrate),
        identities=len(np.unique(faces.labels[list(chosen.calibrate)])),
        model_sha256=bundle.files["model.onnx"].sha256,
    )
    judge = Judge(model, bundle.spec, faces, chosen.judge, track)
    trials, table = settle(table, judge, budget, bundle.root)
    choice = choose(model, table.floats)
    quantized = quantize_onnx(model, table, choice)
    options = {"method": method, "limit": limit} | ({"budget": budget.describe()} if budget else {})
    options |= {"trt_cache": trt_cache} if trt_cache else {}
    odd = framing_note(faces, chosen.calibrate)
    warnings = (*chosen.warnings, odd) if odd else chosen.warnings
    summary = _summary(table, choice, trials, warnings, faces.drawn)
    with change(bundle.root, "calibrate", options) as draft:
        draft.drop(*[n for n in bundle.files if n.startswith("engines/") and "-int8" in n])
        draft.drop(
            "reports/verify-int8", "reports/benchmark-int8", "reports/evaluate-int8", "report.html"
        )
        draft.drop("calibration.cache")
        if version:
            kind = "entropy" if method == "auto" else method
            ranges = plain_ranges({name: seen[name] for name in plain}, kind)
            target = draft.path("calibration.cache", "calibration cache of TensorRT")
            target.write_text(cache_text(TrtCache(version, ALGORITHM, ranges)))
        draft.path("calibration.json", "calibration table").write_text(table_to_json(table))
        target = draft.path("model.int8.onnx", "INT8 model (Q/DQ)")
        target.write_bytes(quantized.SerializeToString())
        report = {**summary, "trials": [trial.to_json() for trial in trials]}
        target = draft.path("reports/calibration.json", "what INT8 lost, on people held apart")
        target.write_text(json.dumps(report, indent=1) + "\n")
        draft.summary.update(summary)
    return open_bundle(bundle.root, check=False)


def _summary(
    table: CalibrationTable,
    choice: Choice,
    trials: list[Trial],
    warnings: tuple[str, ...],
    drawn: bool,
) -> dict[str, Any]:
    loss = trials[-1].loss.to_json() if trials else None
    return {
        "method": table.method,
        "faces": table.faces,
        "identities": table.identities,
        "drawn_faces": drawn,
        "equalised_tensors": len(table.scales),
        "centred_tensors": len(table.centres),
        "int8_layers": len(choice.int8),
        "int8_mac_share": round(choice.mac_share, 4),
        "int8_dense_share": round(choice.dense_share, 4),
        "kept_float": dict(Counter(choice.kept.values())),
        "judged": loss,
        "warnings": list(warnings),
    }
