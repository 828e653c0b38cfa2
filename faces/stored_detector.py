"""A detector in a bundle: how its outputs are read, kept beside the network as `detector.json`.

The network is an ONNX file or an engine made of it; whatever runs it, this module decodes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..documents import read_json
from ..errors import BundleError, DataError
from .contract import InputSpec
from .detect import LAYOUTS, Detector
from .detectors.base import Size
from .detectors.onnx_detector import OnnxDetector

DETECTOR = "detector.onnx"  # the network, float32, within a bundle
DETECTOR_SPEC = "detector.json"
IMAGE = "image"  # the input's name: `(1, 3, height, width) float32`

_SIDES = (32, 4096)  # of a canvas, pixels
_AGAIN = "export it again: `fr-edge export DETECTOR.onnx --role detector --out BUNDLE`"

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DetectorSpec:
    """How a detector is fed and read.

    Attributes:
        family: Name of its layout, such as "SCRFD".
        channels: "RGB" or "BGR".
        mean: Subtracted from pixels 0..255.
        std: Divides after the subtraction.
        min_score: Confidence from which a candidate is a face.
        height: Of the canvas in pixels, of the largest one with `any_size`.
        width: As the height.
        any_size: Whether canvases of other sizes, multiples of 32 pixels, are taken.
        outputs: Names of the network's outputs.
    """

    family: str
    channels: Literal["RGB", "BGR"]
    mean: Triple
    std: Triple
    min_score: float
    height: int
    width: int
    any_size: bool
    outputs: tuple[str, ...]

    @property
    def input(self) -> InputSpec:
        """As the contract of an input."""
        return InputSpec(
            height=self.height,
            width=self.width,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
        )

    def describe(self) -> str:
        """One line: family, input and lowest score."""
        size = "up to " if self.any_size else ""
        return f"{self.family}, {size}{self.input.describe()}, score from {self.min_score:g}"


def spec_of_detector(detector: Detector, outputs: tuple[str, ...]) -> DetectorSpec:
    """What a bundle keeps of an open detector.

    Args:
        detector: What `open_detector` gave.
        outputs: Names of the network's outputs.
    """
    spec, network = detector.spec, detector.network
    return DetectorSpec(
        detector.layout.name,
        "BGR" if spec.channels == "BGR" else "RGB",
        spec.mean,
        spec.std,
        detector.min_score,
        *network.size,
        network.free,
        outputs,
    )


def detector_of_spec(spec: DetectorSpec, session: Any, path: Path) -> Detector:
    """A detector whose network is open already.

    Args:
        spec: How it is fed and read.
        session: Has `run(names, {input: array})`, `get_inputs()` and `get_outputs()` as onnxruntime's
            sessions have them.
        path: The file that is open, for messages.
    """
    layout = next(layout for layout in LAYOUTS if layout.name == spec.family)
    size: Size = (spec.height, spec.width)
    network = OnnxDetector(path, session, size, 1, False, np.float32, False, spec.any_size)
    return Detector(network, layout, spec.input, spec.min_score)


def read_detector_spec(path: Path) -> DetectorSpec:
    """Read and check a bundle's `detector.json`.

    Args:
        path: The file.

    Raises:
        BundleError: The file is damaged, or names what this version does not know.
    """
    try:
        spec = read_json(path, DetectorSpec)
    except DataError as error:
        raise BundleError(f"{path} cannot be read: {error}", _AGAIN) from error
    families = [layout.name for layout in LAYOUTS]
    if spec.family not in families:
        raise BundleError(
            f"{path} names the family {spec.family!r}, expected one of {', '.join(families)}",
            _AGAIN,
        )
    numbers = (*spec.mean, *spec.std, spec.min_score)
    sides = (spec.height, spec.width)
    if (
        not all(map(math.isfinite, numbers))
        or 0 in spec.std
        or not 0 <= spec.min_score <= 1
        or not all(_SIDES[0] <= side <= _SIDES[1] for side in sides)
        or not spec.outputs
    ):
        raise BundleError(f"{path} holds numbers that no detector has", _AGAIN)
    return spec
