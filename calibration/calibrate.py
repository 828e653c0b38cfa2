"""Statistics -> calibration table: centres, scales, ranges and means, in that order."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..documents import to_builtins
from ..errors import ModelError, UsageError
from ..faces.quality import alignment_warning
from ..faces.sources import Faces
from ..graph.layers import Int8Choice, choose_int8_layers
from ..graph.load import check_finite
from ..graph.trained_ranges import read_trained_ranges
from ..metrics.rates import unseparated_warning
from ..progress import Track, silent
from .activation_shift import channel_centres, snap_to_grid
from .clipping import METHODS
from .collect import collect
from .covariance import CovarianceCollector
from .equalization import channel_scales, readings, tensor_ranges
from .gptq import RoundedWeight, round_weights
from .histogram import MOST_FACES, Histogram
from .latency_model import LatencyOf, counted_latency
from .mixed_precision import Assignment, Budget, Judge, search_assignment
from .qdq import quantize_onnx
from .subset import inspect_subset, select_subset
from .table import CalibrationTable, table_to_json
from .trt_cache import (
    ALGORITHM,
    TrtCache,
    activation_tensors,
    cache_text,
    plain_ranges,
    version_number,
)


@dataclass(frozen=True)
class Steps:
    """What is done besides finding ranges; each can be left out to see what it brings."""

    equalise: bool = True
    centre: bool = True
    correct_bias: bool = True
    round_to_data: bool = True


def fit_table(
    model: onnx.ModelProto,
    choice: Int8Choice,
    seen: Mapping[str, Histogram],
    method: str = "auto",
    steps: Steps = Steps(),  # noqa: B008 (frozen)
    *,
    faces: int,
    identities: int,
    model_sha256: str,
) -> CalibrationTable:
    """The table for a float model from the histograms of `choice.tensors`."""
    centres = channel_centres(model, choice, seen) if steps.centre else {}
    read = readings(model, choice, seen, centres)
    scales = channel_scales(model, read) if steps.equalise else {}
    ranges = tensor_ranges(read, scales, method)
    centres = {
        name: snap_to_grid(centre / scales.get(name, 1.0), ranges[name])
        for name, centre in centres.items()
    }
    means = {
        name: seen[name].mean / scales.get(name, 1.0) - centres.get(name, 0.0)
        for name in choice.tensors
    }
    return CalibrationTable(
        method,
        faces,
        identities,
        model_sha256,
        ranges,
        scales,
        centres,
        means if steps.correct_bias else {},
    )


def trained_table(
    choice: Int8Choice, ranges: Mapping[str, float], model_sha256: str
) -> CalibrationTable:
    """The table of a network that was trained on these ranges: they and nothing else, for its
    weights have found their places. Raises ModelError when a tensor has none."""
    if missing := [name for name in choice.tensors if name not in ranges]:
        raise ModelError(f"the network was trained without a range for {missing[0]}", "train again")
    kept = {name: ranges[name] for name in choice.tensors}
    return CalibrationTable("trained", 0, 0, model_sha256, kept)


# What calibration leaves in the bundle, in one change.

_DETAILS = ("budget", "time", "trials")
"""Of the report, not of the history's summary."""


def record(
    bundle: Bundle,
    options: Mapping[str, Any],
    table: CalibrationTable,
    quantized: ModelProto,
    report: Mapping[str, Any],
    cache: str = "",
) -> None:
    """Write the table, the INT8 model, the report and, where there is one, TensorRT's cache."""
    with transaction(bundle.root, "calibrate", dict(options)) as draft:
        if cache:
            draft.path("calibration.cache", "TensorRT calibration cache").write_text(cache)
        draft.path("calibration.json", "calibration table").write_text(table_to_json(table))
        target = draft.path("model.int8.onnx", "INT8 model (Q/DQ)")
        target.write_bytes(quantized.SerializeToString())
        text = json.dumps(report, indent=1) + "\n"
        draft.path("reports/calibration.json", "calibration report").write_text(text)
        draft.summary.update({k: v for k, v in report.items() if k not in _DETAILS})


def summary(
    table: CalibrationTable,
    choice: Int8Choice,
    trials: Sequence[Assignment],
    warnings: Sequence[str],
    drawn: bool,
) -> dict[str, Any]:
    """What the history and the report say of it; `drawn` faces are nobody's."""
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
        "judged": to_builtins(trials[-1].loss) if trials else None,
        "warnings": list(warnings),
    }


# The stage: faces -> statistics -> table -> Q/DQ model, judged and put into the bundle.

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
    latency: LatencyOf = counted_latency,
) -> Bundle:
    """Write `calibration.json`, `model.int8.onnx` and `reports/calibration.json`.

    `trt_cache`, a TensorRT version, writes `calibration.cache` too, for implicit quantisation: the
    ranges of all activations of the plain network by `method`, entropy for `auto`.

    At most `limit` faces calibrate, spread over the identities; the result is judged on people
    held apart from them. A network that was trained on INT8's rounding brings its own ranges, which
    method auto takes as they are. With a `budget`, layers go back to float until it holds, and a
    search that was interrupted goes on where it was. `latency` says how long assignments take; the
    fastest that holds is kept.

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
    check_finite(model)
    rule = choose_int8_layers(model)
    if not rule.int8:
        raise ModelError("the model has no dense layer that INT8 could speed up", "build FP16")
    judged = BUDGET_JUDGED if budget else JUDGED
    chosen = inspect_subset(
        faces, select_subset(faces, limit, judged, pairs=budget is not None), track
    )
    fitted = _fit(
        model, rule, bundle, faces, chosen.calibrate, method, steps, version=version, track=track
    )
    rounded = fitted.rounded
    judge = Judge(model, bundle.spec, faces, chosen.judge, track, rounded)
    settled = search_assignment(fitted.table, judge, budget, bundle.root, latency)
    trials, table = settled.trials, settled.table
    odd = [alignment_warning(faces, chosen.calibrate)]
    odd += [unseparated_warning(trials[-1].loss)] if trials and not faces.drawn else []
    warnings = (*chosen.warnings, *filter(None, odd))
    choice = choose_int8_layers(model, table.floats)
    report = {
        **summary(table, choice, trials, warnings, faces.drawn),
        "budget": budget.describe() if budget else None,
        "time": settled.times,
        "trials": [trial.to_json() for trial in trials],
    }
    options: dict[str, Any] = {"method": method, "limit": limit}
    options |= {"budget": budget.describe()} if budget else {}
    options |= {"trt_cache": trt_cache} if trt_cache else {}
    options |= {name: False for name, done in asdict(steps).items() if not done}
    record(
        bundle, options, table, quantize_onnx(model, table, choice, rounded), report, fitted.cache
    )
    return open_bundle(bundle.root, check="manifest")


@dataclass(frozen=True)
class _Fitted:
    """`cache` is TensorRT's calibration cache, "" where none was asked for."""

    table: CalibrationTable
    rounded: Mapping[str, RoundedWeight]
    cache: str


def _fit(
    model: onnx.ModelProto,
    rule: Int8Choice,
    bundle: Bundle,
    faces: Faces,
    picks: Sequence[int],
    method: str,
    steps: Steps,
    *,
    version: int,
    track: Track,
) -> _Fitted:
    """One pass over the faces at `picks`, whose statistics end here."""
    trained = read_trained_ranges(model) if method == "auto" else {}
    plain = activation_tensors(model) if version else ()
    tensors = tuple(dict.fromkeys((*plain, *(() if trained else rule.tensors))))
    moments = CovarianceCollector(model, rule.int8 if steps.round_to_data and not trained else ())
    seen = collect(model, tensors, bundle.spec, faces, picks, track, moments) if tensors else {}
    sha256 = bundle.files["model.onnx"].sha256
    if trained:
        table = trained_table(rule, trained, sha256)
    else:
        people = len(np.unique(faces.labels[list(picks)]))
        table = fit_table(
            model, rule, seen, method, steps,
            faces=len(picks), identities=people, model_sha256=sha256,
        )  # fmt: skip
    cache = ""
    if version:
        ranges = plain_ranges(
            {name: seen[name] for name in plain}, "entropy" if method == "auto" else method
        )
        cache = cache_text(TrtCache(version, ALGORITHM, ranges))
    return _Fitted(table, round_weights(model, table, moments.found), cache)
