"""The calibration table: statistics of the faces' activations, never an image."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arrays import F64
from ..documents import convert, read_json
from ..errors import BundleError, DataError

_SCHEMA = 3
_ARRAYS = ("scales", "shifts", "means")
_HINT = "make it again with `fr-edge calibrate BUNDLE --faces SRC`"


@dataclass(frozen=True)
class CalibrationFiles:
    """Where a bundle keeps the calibration of one precision.

    Attributes:
        table: The calibration table.
        model: The Q/DQ model.
        report: What calibration did and what the precision loses.
    """

    table: str
    model: str
    report: str


CALIBRATION_FILES = {
    "int8": CalibrationFiles("calibration.json", "model.int8.onnx", "reports/calibration.json"),
    "fp8": CalibrationFiles(
        "calibration.fp8.json", "model.fp8.onnx", "reports/calibration-fp8.json"
    ),
}


@dataclass(frozen=True)
class CalibrationTable:
    """What turns a float model into its INT8 or FP8 model, tensor by tensor.

    Channel c of tensor t is divided by `scales[t][c]`, then `shifts[t][c]` is subtracted, where the
    table has them; `ranges` and `means` describe the result.

    Attributes:
        method: "auto", a name of `clipping.METHODS`, or "trained".
        faces: Number of faces that calibrated.
        identities: Number of people among them.
        model_sha256: Of the float model, hexadecimal.
        ranges: Tensor that is quantized -> amax > 0; its scale is amax / 127 for INT8, and amax / 448
            for FP8.
        scales: Tensor -> `(C,) float64`, equalization.
        shifts: Tensor -> `(C,) float64`, activation shift.
        means: Tensor -> `(C,) float64`, the mean of each channel, for bias correction.
        float_layers: Layer kept in float by an accuracy budget or for its rounding error -> the reason.
        precision: "int8" or "fp8", the format of the quantized layers.
    """

    method: str
    faces: int
    identities: int
    model_sha256: str
    ranges: Mapping[str, float]
    scales: Mapping[str, F64] = field(default_factory=dict)
    shifts: Mapping[str, F64] = field(default_factory=dict)
    means: Mapping[str, F64] = field(default_factory=dict)
    float_layers: Mapping[str, str] = field(default_factory=dict)
    precision: str = "int8"


@dataclass(frozen=True)
class _TableDocument:
    """`calibration.json` and `calibration.fp8.json`: the fields of `CalibrationTable`."""

    method: str
    faces: int
    identities: int
    model_sha256: str
    ranges: dict[str, float]
    scales: dict[str, list[float]]
    shifts: dict[str, list[float]]
    means: dict[str, list[float]]
    float_layers: dict[str, str]
    precision: Literal["int8", "fp8"] = "int8"


def table_to_json(table: CalibrationTable) -> str:
    """A table as the text of `calibration.json`, with a digest against edits.

    Args:
        table: Its ranges are written exactly, its arrays with 7 significant digits.
    """
    data: dict[str, Any] = {"schema": _SCHEMA, **asdict(table)}
    for name in _ARRAYS:
        data[name] = {k: [float(f"{x:.7g}") for x in v] for k, v in data[name].items()}
    return json.dumps({**data, "digest": _digest(data)}, indent=1) + "\n"


def read_table(path: Path) -> CalibrationTable:
    """Read and check a calibration table.

    Args:
        path: A bundle's `calibration.json`.

    Raises:
        BundleError: The file is damaged, was edited, or another schema wrote it.
    """
    try:
        data = read_json(path, dict[str, Any])
        schema = data.pop("schema", None)
        if schema != _SCHEMA:
            raise BundleError(f"{path} has schema {schema}, expected {_SCHEMA}", _HINT)
        if data.pop("digest", "") != _digest({"schema": schema, **data}):
            raise BundleError(f"{path} was edited after calibration wrote it", _HINT)
        document = convert(data, _TableDocument, path)
    except BundleError:
        raise
    except (OSError, DataError) as error:
        raise BundleError(f"{path} cannot be read: {error}", _HINT) from error
    arrays = {
        name: {k: np.array(v, np.float64) for k, v in getattr(document, name).items()}
        for name in _ARRAYS
    }
    table = CalibrationTable(**{**vars(document), **arrays})
    values = [*table.ranges.values(), *np.concatenate([*table.scales.values(), [1.0]])]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise BundleError(f"{path} holds a range or scale that is not above 0", _HINT)
    return table


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
