"""Calibration: faces -> statistics -> table -> INT8 or FP8 model, judged and in the bundle."""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..bundle.provenance import ImageDigests, with_digests
from ..documents import encode_json, to_builtins
from ..errors import FacesError, ModelError, UsageError
from ..faces.quality import alignment_warning
from ..faces.sources import Faces
from ..graph.eight_bit import eight_bit_format
from ..graph.layers import Int8Choice, choose_int8_layers
from ..graph.load import check_finite
from ..graph.trained_ranges import read_trained_ranges
from ..interruption import keeping
from ..metrics.rates import unseparated_warning
from ..onnx_file import read_onnx
from ..progress import Track, silent
from . import constants
from .activation_shift import channel_shifts, snap_to_grid
from .budget import CANNOT_JUDGE, MAX_JUDGED_FACES, Budget
from .calibration_report import CalibrationReport, make_report
from .clipping import METHODS
from .collect import collect_histograms
from .covariance import CovarianceCollector
from .equalization import channel_scales, quantized_inputs, tensor_ranges
from .gptq import RoundedWeight, round_weights
from .histogram import Histogram
from .latency_model import LatencyOf, counted_latency
from .mixed_precision import HeldOutJudge, SearchResult, search_assignment
from .qdq import quantize_onnx
from .statistics_draft import StatisticsDraft, kept_statistics, remove_statistics
from .subset import (
    CalibrationSubset,
    FaceStatistics,
    is_blank,
    select_subset,
    subset_warnings,
    usable_faces,
)
from .table import CALIBRATION_FILES, CalibrationFiles, CalibrationTable, table_to_json
from .trt_cache import (
    ALGORITHM,
    TrtCache,
    activation_tensors,
    cache_text,
    plain_ranges,
    version_number,
)

logger = logging.getLogger(__name__)

# FP8's relative precision is the same at every scale, so nothing is clipped; entropy and mse
# distribute INT8's 127 steps.
_FP8_METHODS = ("minmax", "percentile")

_NOT_IN_HISTORY = ("budget", "time_source", "trials", "provenance")  # fields of the report


@dataclass(frozen=True)
class CalibrationSteps:
    """Which methods are used besides ranges; each can be left out to measure what it contributes.

    Attributes:
        equalization: Scale channels of neighbouring layers to a common range.
        activation_shift: Subtract the midpoints of one-sided activations; INT8 only, since FP8 is
            most precise near zero, where most activations are.
        bias_correction: Correct biases for the mean error of rounded weights.
        gptq: Round weights for their real inputs, not to nearest.
    """

    equalization: bool = True
    activation_shift: bool = True
    bias_correction: bool = True
    gptq: bool = True


ALL_STEPS = CalibrationSteps()
RANGES_ONLY = CalibrationSteps(False, False, False, False)


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` returns.

    Attributes:
        bundle: The bundle with its new files.
        table: The calibration table.
        choice: Which layers are INT8, and the reason for each that is not.
        report: What INT8 loses, and what was tried.
    """

    bundle: Bundle
    table: CalibrationTable
    choice: Int8Choice
    report: CalibrationReport


def calibrate(
    bundle: Bundle | str | Path,
    faces: Faces,
    method: str = "auto",
    limit: int = 512,
    track: Track = silent,
    *,
    precision: str = "int8",
    steps: CalibrationSteps = ALL_STEPS,
    budget: Budget | None = None,
    trt_cache: str | None = None,
    latency: LatencyOf = counted_latency,
    force: bool = False,
) -> CalibrationResult:
    """Write a calibration table, a Q/DQ model and a report into a bundle: `CALIBRATION_FILES`.

    The model is judged on people held out from calibration. A network that was trained with simulated
    INT8 has ranges of its own, which method auto uses for INT8.

    Args:
        bundle: A bundle with `model.onnx`, or its folder.
        faces: Aligned faces; a few hundred of many people. Each is decoded once.
        method: How ranges are chosen: auto, minmax, percentile, entropy or mse; for FP8 auto (twice
            the largest magnitude), minmax or percentile.
        limit: Most faces that calibrate, spread over the identities.
        track: Shows progress.
        precision: "int8" or "fp8".
        steps: Which methods are used besides ranges.
        budget: What the precision may lose. Layers go back to float until it holds; a search that was
            interrupted continues.
        trt_cache: A TensorRT version: write `calibration.cache` too, for implicit INT8, with the
            ranges of all activations by `method` (entropy for auto), without the other steps.
        latency: How long assignments take; the fastest that holds the budget is kept.
        force: Replace an earlier calibration even when the faces look unusable.

    Raises:
        UsageError: The precision, method or limit does not exist, or INT8's cache is wanted of FP8.
        FacesError: Faces cannot be read, are blank, or are too few; or they are not aligned or
            their people not separated, and the bundle has a calibration that is kept.
        ModelError: The network has no dense layer, or overflows.
        BundleError: The bundle has no `model.onnx`.
        GateFailed: No assignment holds the budget.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    names = CALIBRATION_FILES[eight_bit_format(precision).name]
    methods = METHODS if precision == "int8" else _FP8_METHODS
    if method != "auto" and method not in methods:
        raise UsageError(
            f"no calibration method {method!r} for {precision.upper()}",
            f"methods: auto, {', '.join(methods)}",
        )
    if trt_cache and precision != "int8":
        raise UsageError(
            "a TensorRT calibration cache is INT8's", "leave out --trt-cache, or --precision int8"
        )
    if not 1 <= limit <= constants.MAX_FACES:
        raise UsageError(f"--limit is 1 to {constants.MAX_FACES}, found {limit}")
    cache_version = version_number(trt_cache) if trt_cache else 0
    model = read_onnx(bundle.file("model.onnx"))
    check_finite(model)
    rule = choose_int8_layers(model)
    if not rule.int8:
        raise ModelError("the model has no dense layer that 8 bits could speed up", "build FP16")
    held_out = MAX_JUDGED_FACES if budget else constants.HELD_OUT
    subset = select_subset(faces, limit, held_out, pairs=budget is not None)
    stride = max(1, len(subset.calibration) // constants.ALIGNMENT_FACES)
    faces, images = with_digests(faces)
    faces = faces.cached(
        (*subset.held_out, *subset.calibration[::stride][: constants.ALIGNMENT_FACES])
    )
    stats = FaceStatistics()
    fit = _fit(
        model, rule, bundle, faces, images, subset, stats, method, precision, steps, cache_version,
        track,
    )  # fmt: skip
    picks = [i for i in subset.held_out if not is_blank(faces.read(i))]
    judge = HeldOutJudge(model, bundle.spec, faces, picks, fit.rounded, track)
    with keeping(lambda: kept_statistics(bundle.root)):
        search = search_assignment(fit.table, judge, budget, bundle.root, latency)
    choice = choose_int8_layers(model, search.table.float_layers)
    unusable = _unusable(faces, stats, search)
    if unusable and names.table in bundle and not force:
        raise FacesError(
            f"{faces.where} cannot replace the bundle's calibration, which is kept: "
            + "; ".join(unusable),
            "give aligned faces with a folder per person, or --force to replace it all the same",
        )
    warnings = [*_warnings(faces, subset, stats, search, budget), *unusable]
    for warning in warnings:
        logger.warning(warning)
    quantized = quantize_onnx(model, search.table, choice, fit.rounded)
    files = {
        names.table: table_to_json(search.table).encode(),
        names.model: quantized.SerializeToString(),
    }
    report = make_report(bundle, search, choice, faces.synthetic, warnings, budget, images, files)
    options: dict[str, Any] = {"method": method, "limit": limit}
    options |= {"precision": precision} if precision != "int8" else {}
    options |= {"budget": budget.describe()} if budget else {}
    options |= {"trt_cache": trt_cache} if trt_cache else {}
    options |= {name: False for name, used in asdict(steps).items() if not used}
    _write(bundle, names, options, files, report, fit.cache)
    remove_statistics(bundle.root)
    return CalibrationResult(
        open_bundle(bundle.root, check="manifest"), search.table, choice, report
    )


def fit_table(
    model: onnx.ModelProto,
    choice: Int8Choice,
    histograms: Mapping[str, Histogram],
    method: str = "auto",
    steps: CalibrationSteps = ALL_STEPS,
    *,
    faces: int,
    identities: int,
    model_sha256: str,
    precision: str = "int8",
) -> CalibrationTable:
    """Shifts, scales, ranges and means of a float model, from histograms.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers are quantized.
        histograms: Tensor -> its values, for `choice.tensors`.
        method: How ranges are chosen, as `calibrate`.
        steps: Which methods are used besides ranges.
        faces: Number of faces behind the histograms.
        identities: Number of people among them.
        model_sha256: Of the model's file, hexadecimal.
        precision: "int8" or "fp8".
    """
    shifted = steps.activation_shift and precision == "int8"
    midpoints = channel_shifts(model, choice, histograms) if shifted else {}
    inputs = quantized_inputs(model, choice, histograms, midpoints)
    scales = channel_scales(model, choice, inputs) if steps.equalization else {}
    if precision == "fp8" and method == "auto":
        peaks = tensor_ranges(inputs, scales, "minmax")
        ranges = {name: constants.FP8_HEADROOM * peak for name, peak in peaks.items()}
    else:
        ranges = tensor_ranges(inputs, scales, method)
    shifts = {
        name: snap_to_grid(midpoint / scales.get(name, 1.0), ranges[name])
        for name, midpoint in midpoints.items()
    }
    means = {
        name: histograms[name].mean / scales.get(name, 1.0) - shifts.get(name, 0.0)
        for name in choice.tensors
    }
    return CalibrationTable(
        method,
        faces,
        identities,
        model_sha256,
        ranges,
        scales,
        shifts,
        means if steps.bias_correction else {},
        precision=precision,
    )


@dataclass(frozen=True)
class _Fit:
    """What one pass over the calibration faces gives; `cache` is the text of TensorRT's calibration
    cache, or ""."""

    table: CalibrationTable
    rounded: Mapping[str, RoundedWeight]
    cache: str


def _fit(
    model: onnx.ModelProto,
    rule: Int8Choice,
    bundle: Bundle,
    faces: Faces,
    digests: ImageDigests,
    subset: CalibrationSubset,
    stats: FaceStatistics,
    method: str,
    precision: str,
    steps: CalibrationSteps,
    cache_version: int,
    track: Track,
) -> _Fit:
    """One pass over the calibration faces; the histograms are freed when it returns."""
    trained = read_trained_ranges(model) if method == "auto" and precision == "int8" else {}
    plain = activation_tensors(model) if cache_version else ()
    tensors = tuple(dict.fromkeys((*plain, *(() if trained else rule.tensors))))
    covariances = CovarianceCollector(model, rule.int8 if steps.gptq and not trained else ())
    sha256 = bundle.files["model.onnx"].sha256
    draft = StatisticsDraft(bundle, subset.calibration, tensors, covariances.moments)
    if tensors:
        draft.restore(faces, digests.by_index)
    picks = track(subset.calibration, "calibrating", len(subset.calibration))
    images = usable_faces(faces, picks, stats)
    deque(islice(images, draft.count if tensors else None), maxlen=0)  # these are only checked
    histograms = draft.histograms
    if tensors:
        with draft.collecting(stats.used, digests.by_index):
            collect_histograms(
                model, tensors, bundle.spec, images, covariances,
                histograms=histograms, counted=draft.counted,
            )  # fmt: skip
            draft.complete()
    if trained:
        table = _trained_table(rule, trained, sha256)
    else:
        identities = len(np.unique(faces.labels[stats.used]))
        table = fit_table(
            model, rule, histograms, method, steps,
            faces=len(stats.used), identities=identities, model_sha256=sha256, precision=precision,
        )  # fmt: skip
    cache = ""
    if cache_version:
        activations = {name: histograms[name] for name in plain}
        ranges = plain_ranges(activations, "entropy" if method == "auto" else method)
        cache = cache_text(TrtCache(cache_version, ALGORITHM, ranges))
    correct = steps.bias_correction
    rounded = round_weights(model, table, covariances.moments, correct_biases=correct)
    return _Fit(table, rounded, cache)


def _trained_table(
    choice: Int8Choice, ranges: Mapping[str, float], model_sha256: str
) -> CalibrationTable:
    """Trained ranges and nothing else, because the weights were trained with them."""
    if missing := [name for name in choice.tensors if name not in ranges]:
        raise ModelError(f"the network was trained without a range for {missing[0]}", "train again")
    used = {name: ranges[name] for name in choice.tensors}
    return CalibrationTable("trained", 0, 0, model_sha256, used)


def _unusable(faces: Faces, stats: FaceStatistics, search: SearchResult) -> list[str]:
    """Why ranges of these faces are not those of aligned faces, a sentence each."""
    reasons = [alignment_warning(faces, stats.used)]
    if search.assignments and not faces.synthetic:
        reasons.append(unseparated_warning(search.assignments[-1].loss))
    return [reason for reason in reasons if reason]


def _warnings(
    faces: Faces,
    subset: CalibrationSubset,
    stats: FaceStatistics,
    search: SearchResult,
    budget: Budget | None,
) -> tuple[str, ...]:
    warnings = [f"the quantized model was not judged: {subset.reason}"] if subset.reason else []
    warnings += subset_warnings(faces, stats)
    if search.assignments:
        loss = search.assignments[-1].loss
        drop = budget.max_tar_drop if budget else None
        if drop is not None and loss.genuine_pairs * drop < 1.0:
            warnings.append(
                f"{loss.genuine_pairs} genuine pairs cannot tell a TAR drop of {drop:g} from none by"
                " count: more people with several images each would show what INT8 really loses"
            )
        full = next((a.loss for a in search.assignments if not a.float_layers), None)
        if budget and full and budget.verdict(full) == CANNOT_JUDGE:
            warnings.append(
                f"these people cannot judge the budget with all layers in INT8"
                f" ({budget.describe_loss(full)}): to keep fewer layers in float,"
                f" {budget.cure(full)}"
            )
    return tuple(filter(None, warnings))


def _write(
    bundle: Bundle,
    names: CalibrationFiles,
    options: Mapping[str, Any],
    files: Mapping[str, bytes],
    report: CalibrationReport,
    cache: str,
) -> None:
    with transaction(bundle, "calibrate", options) as change:
        if cache:
            change.path("calibration.cache", "TensorRT calibration cache").write_text(cache)
        elif report.precision == "int8":
            change.remove("calibration.cache")
        quantized = f"{report.precision.upper()} model (Q/DQ)"
        roles = {names.table: "calibration table", names.model: quantized}
        for name, data in files.items():
            change.path(name, roles[name]).write_bytes(data)
        target = change.path(names.report, "calibration report")
        target.write_bytes(encode_json(report))
        summary = to_builtins(report)
        change.summary.update({k: v for k, v in summary.items() if k not in _NOT_IN_HISTORY})
