"""Faces -> statistics -> calibration table and rounded weights: what one pass over the faces gives."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx

from ..bundle.manifest import Bundle
from ..bundle.provenance import ImageDigests
from ..errors import ModelError
from ..faces.sources import Faces
from ..graph.layers import Int8Choice
from ..graph.trained_ranges import read_trained_ranges
from ..progress import Track
from . import constants
from .activation_shift import channel_shifts, snap_to_grid
from .collect import collect_histograms
from .covariance import CovarianceCollector
from .equalization import channel_scales, quantized_inputs, tensor_ranges
from .gptq import RoundedWeight, round_weights
from .histogram import Histogram
from .statistics_draft import StatisticsDraft
from .subset import CalibrationSubset, FaceStatistics, usable_faces
from .table import CalibrationTable
from .trt_cache import ALGORITHM, TrtCache, activation_tensors, cache_text, plain_ranges


@dataclass(frozen=True)
class CalibrationSteps:
    """Which methods are used besides ranges; each can be left out to measure what it contributes.

    Attributes:
        equalization: Scale channels of neighbouring layers to a common range.
        activation_shift: Subtract the midpoints of one-sided activations; INT8 only, since FP8 is
            most precise near zero, where most activations are.
        bias_correction: Correct biases for the mean error of rounded weights.
        gptq: Round weights for their real inputs, not to nearest.
        error_limit: Keep the layers that INT8 speeds up least in float where INT8's mean error is
            above `MAX_MEAN_ERROR`; INT8 only, and not with a budget, which decides itself.
    """

    equalization: bool = True
    activation_shift: bool = True
    bias_correction: bool = True
    gptq: bool = True
    error_limit: bool = True


ALL_STEPS = CalibrationSteps()
RANGES_ONLY = CalibrationSteps(False, False, False, False, False)


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
class Fit:
    """A choice of layers with its table and weights.

    Attributes:
        choice: Which layers are quantized.
        table: The calibration table.
        rounded: Layer -> rounded weights; other weights are rounded to nearest.
    """

    choice: Int8Choice
    table: CalibrationTable
    rounded: Mapping[str, RoundedWeight]


def fit_faces(
    model: onnx.ModelProto,
    choices: Sequence[Int8Choice],
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
) -> tuple[list[Fit], str]:
    """Fit choices of layers in one pass over the calibration faces, whose histograms are then freed.

    Args:
        model: The float model of the bundle.
        choices: Which of its layers are quantized; each is fitted.
        bundle: An open bundle.
        faces: The source of the faces.
        digests: Of the faces' pixels; grows meanwhile.
        subset: Which faces calibrate.
        stats: Of the faces that are used; grows meanwhile.
        method: How ranges are chosen, as `calibrate`.
        precision: "int8" or "fp8".
        steps: Which methods are used besides ranges.
        cache_version: Of TensorRT, whose calibration cache is wanted too, or 0.
        track: Shows progress.

    Returns:
        The fits, and the text of TensorRT's calibration cache, or "".

    Raises:
        FacesError: A face cannot be read, or there are too few.
        ModelError: The network overflows, or was trained without the range of a tensor.
    """
    trained = read_trained_ranges(model) if method == "auto" and precision == "int8" else {}
    plain = activation_tensors(model) if cache_version else ()
    read = dict.fromkeys(tensor for choice in choices for tensor in choice.tensors)
    tensors = tuple(dict.fromkeys((*plain, *(() if trained else read))))
    layers = dict.fromkeys(layer for choice in choices for layer in choice.int8)
    covariances = CovarianceCollector(model, list(layers) if steps.gptq and not trained else ())
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
    identities = len(np.unique(faces.labels[stats.used]))
    fits = []
    for choice in choices:
        if trained:
            table = _trained_table(choice, trained, sha256)
        else:
            table = fit_table(
                model, choice, histograms, method, steps,
                faces=len(stats.used), identities=identities, model_sha256=sha256,
                precision=precision,
            )  # fmt: skip
        moments = {
            layer: covariances.moments[layer]
            for layer in choice.int8
            if layer in covariances.moments
        }
        rounded = round_weights(model, table, moments, correct_biases=steps.bias_correction)
        fits.append(Fit(choice, table, rounded))
    if not cache_version:
        return fits, ""
    activations = {name: histograms[name] for name in plain}
    ranges = plain_ranges(activations, "entropy" if method == "auto" else method)
    return fits, cache_text(TrtCache(cache_version, ALGORITHM, ranges))


def _trained_table(
    choice: Int8Choice, ranges: Mapping[str, float], model_sha256: str
) -> CalibrationTable:
    """Trained ranges and nothing else, because the weights were trained with them."""
    if missing := [name for name in choice.tensors if name not in ranges]:
        raise ModelError(
            f"the network was trained without a range for {missing[0]}",
            "train again; depthwise convolutions train in float: leave out `--depthwise int8`",
        )
    used = {name: ranges[name] for name in choice.tensors}
    return CalibrationTable("trained", 0, 0, model_sha256, used)
