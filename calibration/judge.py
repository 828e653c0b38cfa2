"""One assignment of INT8 to layers, judged on people held apart from the calibration.

What stays float is judged as FP32. Engines compute it in FP16, whose errors are a hundredth of
INT8's (docs/results/engines.md); `fr-edge verify` judges the engine itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from ..faces.contract import InputSpec
from ..faces.sources import Faces
from ..progress import Track
from .budget import REASON
from .histogram import F32
from .layers import Choice, choose, compute_layers
from .loss import AtFar, Loss, compare
from .observe import embeddings
from .quantize import quantize_onnx
from .rounding import Rounded
from .table import CalibrationTable

PROBES = 24
"""Faces that a single layer's cost is measured on."""


@dataclass(frozen=True)
class Trial:
    """One assignment and its loss: a row of the Pareto table. `requantised` counts the tensors
    that are converted to INT8, `cost` is its time, all in float being 1."""

    floats: tuple[str, ...]
    mac_share: float
    requantised: int
    cost: float
    loss: Loss

    def to_json(self) -> dict[str, Any]:
        return {
            "float_layers": list(self.floats),
            "int8_mac_share": round(self.mac_share, 4),
            "requantised_tensors": self.requantised,
            "cost": round(self.cost, 4),
            **self.loss.to_json(),
        }


@dataclass(frozen=True)
class Judge:
    """The float model on the faces at `picks`, none of whose people calibrated; `rounded` are the
    weights of layers that were not rounded to nearest."""

    model: onnx.ModelProto
    spec: InputSpec
    faces: Faces
    picks: Sequence[int]
    track: Track
    rounded: Mapping[str, Rounded] = field(default_factory=dict)

    @cached_property
    def expected(self) -> F32:
        """`(len(picks), D) float32`."""
        return embeddings(self.model, self.spec, self.faces, self.picks, self.track)

    def quantised(self, table: CalibrationTable, choice: Choice) -> onnx.ModelProto:
        return quantize_onnx(self.model, table, choice, self.rounded)

    def trial(
        self,
        table: CalibrationTable,
        floats: Sequence[str],
        far: float | None,
        cost: Callable[[Choice], float],
    ) -> Trial:
        choice = choose(self.model, dict.fromkeys(floats, REASON))
        quantised = self.quantised(table, choice)
        found = embeddings(quantised, self.spec, self.faces, self.picks, self.track)
        loss = compare(self.expected, found, self.faces.labels[list(self.picks)], far)
        tensors = len(choice.tensors)
        return Trial(tuple(floats), choice.mac_share, tensors, cost(choice), loss)

    def error(self, table: CalibrationTable, layer: str) -> float:
        """1 - mean cosine on a few faces when this layer alone is INT8."""
        others = {other.name: REASON for other in compute_layers(self.model) if other.name != layer}
        quantised = self.quantised(table, choose(self.model, others))
        few = list(range(0, len(self.picks), max(1, len(self.picks) // PROBES)))[:PROBES]
        found = embeddings(quantised, self.spec, self.faces, [self.picks[i] for i in few])
        return 1.0 - compare(self.expected[few], found, np.zeros(len(few), np.int64)).cosine_mean


def trial_of(data: dict[str, Any]) -> Trial:
    loss = data["loss"]
    rates = tuple(AtFar(**rate) for rate in loss["rates"])
    return Trial(
        **{**data, "floats": tuple(data["floats"]), "loss": Loss(**{**loss, "rates": rates})}
    )
