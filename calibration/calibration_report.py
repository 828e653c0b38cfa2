"""What a calibration did and what INT8 or FP8 loses: the shape of `reports/calibration*.json`."""

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from ..bundle.manifest import Bundle
from ..bundle.provenance import ImageDigests, Provenance, make_provenance
from ..graph.layers import Int8Choice
from ..metrics.rates import EmbeddingLoss
from .search.budget import Budget
from .search.mixed_precision import Assignment, SearchResult

_PACKAGES = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did and what the precision loses; the keys are the same for INT8 and FP8.

    Attributes:
        method: How ranges were chosen.
        faces: Number of faces that calibrated; 0 for a network with trained ranges.
        identities: Number of people among them.
        synthetic_faces: The faces are synthetic.
        equalized_tensors: Number of tensors that equalization scales.
        shifted_tensors: Number of tensors with an activation shift.
        int8_layers: Number of layers in 8 bits.
        int8_mac_share: Share of all multiply-adds in 8 bits, 0..1.
        int8_dense_share: The same of the dense layers' multiply-adds.
        kept_float: Why layers with weights are in float -> how many.
        judged: The quantized model against the float model on held-out people; None without any.
        warnings: What is suspicious, a sentence each.
        budget: The accuracy budget as text.
        time_source: Where the times of `trials` come from.
        trials: The assignments of INT8 to layers that were judged; the last one is taken.
        provenance: The model, the images and the versions that the figures come from.
        precision: "int8" or "fp8".
    """

    method: str
    faces: int
    identities: int
    synthetic_faces: bool
    equalized_tensors: int
    shifted_tensors: int
    int8_layers: int
    int8_mac_share: float
    int8_dense_share: float
    kept_float: Mapping[str, int]
    judged: EmbeddingLoss | None
    warnings: tuple[str, ...]
    budget: str | None
    time_source: str
    trials: tuple[Assignment, ...]
    provenance: Provenance | None = None
    precision: str = "int8"


def make_report(
    bundle: Bundle,
    search: SearchResult,
    choice: Int8Choice,
    synthetic: bool,
    warnings: Sequence[str],
    budget: Budget | None,
    images: ImageDigests,
    files: Mapping[str, bytes],
) -> CalibrationReport:
    """The report of a calibration.

    Args:
        bundle: The bundle as it was opened.
        search: The table, and the assignments that were judged.
        choice: Which layers are INT8.
        synthetic: Whether the faces are synthetic.
        warnings: What is suspicious, a sentence each.
        budget: The accuracy budget, where there is one.
        images: Digests of the images that calibrated and judged.
        files: Path within the bundle -> the bytes that this calibration writes.
    """
    table, assignments = search.table, search.assignments
    machine = {
        "backend": "onnxruntime",
        "onnxruntime": version("onnxruntime"),
        "arch": platform.machine(),
    }
    provenance = make_provenance(
        bundle, ("model.onnx",), images=images, device=machine, packages=_PACKAGES
    )
    written = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return CalibrationReport(
        method=table.method,
        faces=table.faces,
        identities=table.identities,
        synthetic_faces=synthetic,
        equalized_tensors=len(table.scales),
        shifted_tensors=len(table.shifts),
        int8_layers=len(choice.int8),
        int8_mac_share=choice.mac_share,
        int8_dense_share=choice.dense_share,
        kept_float=Counter(choice.float_layers.values()),
        judged=assignments[-1].loss if assignments else None,
        warnings=tuple(warnings),
        budget=budget.describe() if budget else None,
        time_source=search.time_source,
        trials=assignments,
        provenance=replace(provenance, files={**provenance.files, **written}),
        precision=table.precision,
    )
