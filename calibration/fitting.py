"""Statistics -> calibration table: centres, scales, ranges and means, in that order."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ..errors import ModelError
from .centre import channel_centres, snapped
from .histogram import Histogram
from .layers import Choice
from .scales import channel_scales, readings, tensor_ranges
from .table import CalibrationTable


@dataclass(frozen=True)
class Steps:
    """What is done besides finding ranges; each can be left out to see what it brings."""

    equalise: bool = True
    centre: bool = True
    correct_bias: bool = True
    round_to_data: bool = True


def fit_table(
    model: onnx.ModelProto,
    choice: Choice,
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
        name: snapped(centre / scales.get(name, 1.0), ranges[name])
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
    choice: Choice, ranges: Mapping[str, float], model_sha256: str
) -> CalibrationTable:
    """The table of a network that was trained on these ranges: they and nothing else, for its
    weights have found their places. Raises ModelError when a tensor has none."""
    if missing := [name for name in choice.tensors if name not in ranges]:
        raise ModelError(f"the network was trained without a range for {missing[0]}", "train again")
    kept = {name: ranges[name] for name in choice.tensors}
    return CalibrationTable("trained", 0, 0, model_sha256, kept)
