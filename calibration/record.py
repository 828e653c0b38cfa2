"""What calibration leaves in the bundle, in one change."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto

from ..bundle import Bundle, change
from .judge import Trial
from .layers import Choice
from .table import CalibrationTable, table_to_json

_STALE = (
    "reports/verify-int8", "reports/benchmark-int8", "reports/evaluate-int8", "report.html",
    "calibration.cache",
)  # fmt: skip
"""What spoke of the INT8 model before."""
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
    with change(bundle.root, "calibrate", dict(options)) as draft:
        draft.drop(*[n for n in bundle.files if n.startswith("engines/") and "-int8" in n])
        draft.drop(*_STALE)
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
    choice: Choice,
    trials: Sequence[Trial],
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
        "judged": trials[-1].loss.to_json() if trials else None,
        "warnings": list(warnings),
    }
