"""The calibration table: what was found on the faces, and how. Statistics only, never an image."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import F64
from ..errors import BundleError

TABLE_SCHEMA = 2


@dataclass(frozen=True)
class CalibrationTable:
    """What turns the float model into the INT8 one, tensor by tensor.

    Channel c of tensor t is divided by `scales[t][c]` and less `centres[t][c]`, where there are
    such; after that, `ranges[t]` is amax > 0 of a tensor that becomes INT8 (its scale is amax / 127)
    and `means[t]` `(C,)` the mean of each channel. `floats` maps layers kept in float, beyond the
    rule, to the reason.
    """

    method: str
    faces: int
    identities: int
    model_sha256: str
    ranges: Mapping[str, float]
    scales: Mapping[str, F64] = field(default_factory=dict)
    centres: Mapping[str, F64] = field(default_factory=dict)
    means: Mapping[str, F64] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)


def table_to_json(table: CalibrationTable) -> str:
    data: dict[str, Any] = {"schema": TABLE_SCHEMA, **asdict(table)}
    for name in ("scales", "centres", "means"):
        data[name] = {k: [float(f"{x:.7g}") for x in v] for k, v in data[name].items()}
    return json.dumps({**data, "digest": _digest(data)}, indent=1) + "\n"


def read_table(path: Path) -> CalibrationTable:
    """Read and check a table; raises BundleError when it is damaged, edited by hand or newer."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != TABLE_SCHEMA:
            raise BundleError(
                f"{path} has schema {data['schema']}, expected {TABLE_SCHEMA}", _AGAIN
            )
        if data.pop("digest", "") != _digest(data):
            raise BundleError(f"{path} was edited after calibration wrote it", _AGAIN)
        del data["schema"]
        for name in ("scales", "centres", "means"):
            data[name] = {k: np.array(v, np.float64) for k, v in data[name].items()}
        table = CalibrationTable(**data)
        values = [*table.ranges.values(), *np.concatenate([*table.scales.values(), [1.0]])]
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise BundleError(f"{path} holds a range or scale that is not above 0", _AGAIN)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", _AGAIN) from error
    return table


_AGAIN = "make it again with `fr-edge calibrate BUNDLE --faces SRC`"


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
