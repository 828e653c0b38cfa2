"""Calibration: faces -> statistics -> table -> INT8 or FP8 model, judged and in the bundle."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..bundle.provenance import with_digests
from ..documents import encode_json, to_builtins
from ..errors import FacesError, GateFailed, ModelError, UsageError
from ..faces.quality import alignment_warning
from ..faces.sources import Faces
from ..graph.eight_bit import eight_bit_format
from ..graph.layers import Int8Choice, choose_int8_layers
from ..graph.load import check_finite
from ..interruption import keeping
from ..metrics.rates import unseparated_warning
from ..onnx_file import read_onnx
from ..progress import Track, silent
from . import constants
from .calibration_report import CalibrationReport, make_report
from .clipping import METHODS
from .fitting import ALL_STEPS, CalibrationSteps, Fit, fit_faces
from .search.budget import CANNOT_JUDGE, MAX_JUDGED_FACES, Budget
from .search.error_limit import limit_error
from .search.latency_model import LatencyOf, counted_latency
from .search.mixed_precision import (
    HeldOutJudge,
    SearchResult,
    remove_search_logs,
    search_assignment,
)
from .statistics_draft import kept_statistics, remove_statistics
from .subset import (
    CalibrationSubset,
    FaceStatistics,
    is_blank,
    select_subset,
    subset_warnings,
)
from .table import CALIBRATION_FILES, CalibrationFiles, CalibrationTable, table_to_json
from .trt_cache import version_number

logger = logging.getLogger(__name__)

# FP8's relative precision is the same at every scale, so nothing is clipped; entropy and mse
# distribute INT8's 127 steps.
_FP8_METHODS = ("minmax", "percentile")

DEPTHWISE = ("auto", "float", "int8")

_NOT_IN_HISTORY = ("budget", "time_source", "trials", "provenance")  # fields of the report


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
    depthwise: str = "auto",
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
        depthwise: What grouped and depthwise convolutions compute in: "float"; "int8", the 8-bit
            format like the dense layers; or "auto": float, unless a budget's engines are timed and
            8 bits are faster there and hold the budget.
        force: Replace an earlier calibration even when the faces look unusable or cannot judge the
            budget.

    Raises:
        UsageError: The precision, method, limit or `depthwise` does not exist, or INT8's cache is
            wanted of FP8.
        FacesError: Faces cannot be read, are blank, or are too few; or they are not aligned or
            their people not separated, and the bundle has a calibration that is kept.
        ModelError: The network has no dense layer, or overflows.
        BundleError: The bundle has no `model.onnx`.
        GateFailed: No assignment holds the budget; or the people cannot judge whether one does, where
            the safest is written, unless the bundle has a calibration, which is kept.
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
    if depthwise not in DEPTHWISE:
        raise UsageError(f"--depthwise is {', '.join(DEPTHWISE)}, found {depthwise!r}")
    cache_version = version_number(trt_cache) if trt_cache else 0
    model = read_onnx(bundle.file("model.onnx"))
    check_finite(model)
    # Whether grouped convolutions are in 8 bits; only engines tell which is faster.
    timed = budget is not None and latency is not counted_latency
    kinds = {"float": [False], "int8": [True], "auto": [False, True][: 1 + timed]}[depthwise]
    choices = [choose_int8_layers(model, grouped=grouped) for grouped in kinds]
    if not choices[0].int8:
        raise ModelError("the model has no dense layer that 8 bits could speed up", "build FP16")
    held_out = MAX_JUDGED_FACES if budget else constants.HELD_OUT
    faces = faces.sized(bundle.spec.crop_side)
    subset = select_subset(faces, limit, held_out, pairs=budget is not None)
    stride = max(1, len(subset.calibration) // constants.ALIGNMENT_FACES)
    faces, images = with_digests(faces)
    faces = faces.cached(
        (*subset.held_out, *subset.calibration[::stride][: constants.ALIGNMENT_FACES])
    )
    stats = FaceStatistics()
    fits, cache = fit_faces(
        model, choices, bundle, faces, images, subset, stats, method, precision, steps,
        cache_version, track,
    )  # fmt: skip
    picks = [i for i in subset.held_out if not is_blank(faces.read(i))]
    judges = [
        HeldOutJudge(model, bundle.spec, faces, picks, fit.rounded, track, grouped)
        for grouped, fit in zip(kinds, fits, strict=True)
    ]
    with keeping(lambda: kept_statistics(bundle.root)):
        limited = steps.error_limit and precision == "int8" and fits[0].table.method != "trained"
        if budget or not picks or not limited:
            search, judge = _fastest(fits, judges, budget, bundle.root, latency)
        else:
            search, judge = limit_error(fits[0].table, judges[0]), judges[0]
    choice = judge.choose(search.table.float_layers)
    if search.doubt and names.table in bundle and not force:
        raise GateFailed(
            f"{search.doubt.message}; the bundle's calibration is kept",
            f"{search.doubt.hint}; --force writes the safest assignment in its place",
        )
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
    quantized = judge.quantize(search.table, choice)
    files = {
        names.table: table_to_json(search.table).encode(),
        names.model: quantized.SerializeToString(),
    }
    report = make_report(bundle, search, choice, faces.synthetic, warnings, budget, images, files)
    options: dict[str, Any] = {"method": method, "limit": limit}
    options |= {"precision": precision} if precision != "int8" else {}
    options |= {"budget": budget.describe()} if budget else {}
    options |= {"trt_cache": trt_cache} if trt_cache else {}
    options |= {"depthwise": depthwise} if depthwise != "auto" else {}
    options |= {name: False for name, used in asdict(steps).items() if not used}
    _write(bundle, names, options, files, report, cache)
    if search.doubt:
        raise GateFailed(
            f"{search.doubt.message}; the bundle has the safest assignment: {len(choice.int8)} of"
            f" {len(judge.choose().int8)} layers in {precision.upper()}, the others in float",
            search.doubt.hint,
        )
    remove_statistics(bundle.root)
    remove_search_logs(bundle.root)
    return CalibrationResult(
        open_bundle(bundle.root, check="manifest"), search.table, choice, report
    )


def _fastest(
    fits: Sequence[Fit],
    judges: Sequence[HeldOutJudge],
    budget: Budget | None,
    root: Path,
    latency: LatencyOf,
) -> tuple[SearchResult, HeldOutJudge]:
    """The first search, or a later one that finds an assignment that is certainly faster."""
    best, judge = search_assignment(fits[0].table, judges[0], budget, root, latency), judges[0]
    for fit, other in zip(fits[1:], judges[1:], strict=True):
        try:
            search = search_assignment(fit.table, other, budget, root, latency)
        except GateFailed as error:
            logger.info("with depthwise convolutions in 8 bits, %s", error)
            continue
        if search.doubt:
            logger.info("with depthwise convolutions in 8 bits, %s", search.doubt)
            continue
        taken, before = search.assignments[-1], best.assignments[-1]
        if best.doubt or taken.cost < before.cost - search.noise:
            best, judge = search, other
    return best, judge


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
