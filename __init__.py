"""fr-edge: from a face-recognition teacher to a verified INT8/FP16 engine on the edge.

The repository's root is this package, so a path on disk is an import path. The stages are
`fr_edge.distill -> fr_edge.export -> fr_edge.calibration -> fr_edge.runtime`; the functions
below load their stage only when they are first used, so `import fr_edge` costs nothing.
(`fr_edge.distill` is the stage; the function is `fr_edge.distill.train.distill`.)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle as Bundle
    from .bundle import open_bundle as open_bundle
    from .calibration.calibrate import calibrate as calibrate
    from .calibration.quantize import quantize_onnx as quantize_onnx
    from .export.convert import export_onnx as export_onnx
    from .faces.contract import InputSpec as InputSpec
    from .faces.sources import open_faces as open_faces
    from .runtime.accuracy.evaluate import evaluate as evaluate
    from .runtime.bench.benchmark import benchmark as benchmark
    from .runtime.engines.build import build_engine as build_engine
    from .runtime.engines.session import open_raw_session as open_raw_session
    from .runtime.engines.session import open_session as open_session
    from .runtime.verification.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "Bundle": ".bundle",
    "open_bundle": ".bundle",
    "InputSpec": ".faces.contract",
    "open_faces": ".faces.sources",
    "export_onnx": ".export.convert",
    "calibrate": ".calibration.calibrate",
    "quantize_onnx": ".calibration.quantize",
    "build_engine": ".runtime.engines.build",
    "open_session": ".runtime.engines.session",
    "open_raw_session": ".runtime.engines.session",
    "verify": ".runtime.verification.verify",
    "evaluate": ".runtime.accuracy.evaluate",
    "benchmark": ".runtime.bench.benchmark",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fr_edge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
