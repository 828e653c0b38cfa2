"""The calibration table: tensor -> amax, and how it came about. Statistics only, never an image."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import BundleError

SCHEMA = 1


@dataclass(frozen=True)
class CalibrationTable:
    """`ranges` maps tensor names to amax > 0; the symmetric scale is amax / 127."""

    method: str
    faces: int
    identities: int
    model_sha256: str
    ranges: Mapping[str, float]


def table_to_json(table: CalibrationTable) -> str:
    data = {"schema": SCHEMA, **asdict(table)}
    return json.dumps(data, indent=1) + "\n"


def read_table(path: Path) -> CalibrationTable:
    """Read and check a table; raises BundleError when it is damaged or newer."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise BundleError(f"{path} is of another schema than {SCHEMA}", "calibrate again")
        table = CalibrationTable(**data)
        ranges = {str(name): float(value) for name, value in table.ranges.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "calibrate again") from error
    if bad := [name for name, value in ranges.items() if not (math.isfinite(value) and value > 0)]:
        raise BundleError(f"{path}: the range of {bad[0]} is not above 0", "calibrate again")
    return table
