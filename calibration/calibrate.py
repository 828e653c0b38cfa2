"""The stage: faces -> statistics -> table -> Q/DQ model, judged and put into the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..bundle import Bundle, open_bundle
from ..errors import ModelError, UsageError
from ..export.finite import check_finite
from ..export.trained import ranges_in
from ..faces.sources import Faces
from ..progress import Track, silent
from .budget import Budget
from .fitting import Steps, fit_table, trained_table
from .framing import framing_note
from .histogram import MOST_FACES
from .judge import Judge
from .latency import LatencyOf, counted
from .layers import Choice, choose
from .loss import stranger_note
from .moments import Collector
from .observe import observe
from .people import look, split
from .quantize import quantize_onnx
from .ranges import METHODS
from .record import record, summary
from .rounding import Rounded, round_weights
from .search import settle
from .table import CalibrationTable
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
    latency: LatencyOf = counted,
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
    rule = choose(model)
    if not rule.int8:
        raise ModelError("the model has no dense layer that INT8 could speed up", "build FP16")
    judged = BUDGET_JUDGED if budget else JUDGED
    chosen = look(faces, split(faces, limit, judged, pairs=budget is not None), track)
    fitted = _fit(
        model, rule, bundle, faces, chosen.calibrate, method, steps, version=version, track=track
    )
    rounded = fitted.rounded
    judge = Judge(model, bundle.spec, faces, chosen.judge, track, rounded)
    settled = settle(fitted.table, judge, budget, bundle.root, latency)
    trials, table = settled.trials, settled.table
    odd = [framing_note(faces, chosen.calibrate)]
    odd += [stranger_note(trials[-1].loss)] if trials and not faces.drawn else []
    warnings = (*chosen.warnings, *filter(None, odd))
    choice = choose(model, table.floats)
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
    return open_bundle(bundle.root, check=False)


@dataclass(frozen=True)
class _Fitted:
    """`cache` is TensorRT's calibration cache, "" where none was asked for."""

    table: CalibrationTable
    rounded: Mapping[str, Rounded]
    cache: str


def _fit(
    model: onnx.ModelProto,
    rule: Choice,
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
    trained = ranges_in(model) if method == "auto" else {}
    plain = activations(model) if version else ()
    tensors = tuple(dict.fromkeys((*plain, *(() if trained else rule.tensors))))
    moments = Collector(model, rule.int8 if steps.round_to_data and not trained else ())
    seen = observe(model, tensors, bundle.spec, faces, picks, track, moments) if tensors else {}
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
