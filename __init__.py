"""fr-edge: from a face-recognition teacher to a verified INT8/FP16 engine on the edge.

The repository's root is this package, so a path on disk is an import path. The stages are
`fr_edge.distill -> fr_edge.export -> fr_edge.calibration -> fr_edge.runtime`; the functions
below load their stage only when they are first used, so `import fr_edge` costs nothing.
(`fr_edge.distill` is the stage; the function is `fr_edge.distill.train.distill`.)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .bundle.bundle import open_bundle as open_bundle
    from .bundle.manifest import Bundle as Bundle
    from .calibration.calibrate import calibrate as calibrate
    from .calibration.qdq import quantize_onnx as quantize_onnx
    from .export.export import export_onnx as export_onnx
    from .faces.contract import InputSpec as InputSpec
    from .faces.sources import open_faces as open_faces
    from .runtime.benchmark.benchmark import benchmark as benchmark
    from .runtime.build import build_engine as build_engine
    from .runtime.evaluation.evaluate import evaluate as evaluate
    from .runtime.evaluation.verify import verify as verify
    from .runtime.session import open_session as open_session

_HOMES = {
    "Bundle": ".bundle.manifest",
    "open_bundle": ".bundle.bundle",
    "InputSpec": ".faces.contract",
    "open_faces": ".faces.sources",
    "export_onnx": ".export.export",
    "calibrate": ".calibration.calibrate",
    "quantize_onnx": ".calibration.qdq",
    "build_engine": ".runtime.build",
    "open_session": ".runtime.session",
    "verify": ".runtime.evaluation.verify",
    "evaluate": ".runtime.evaluation.evaluate",
    "benchmark": ".runtime.benchmark.benchmark",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fr_edge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
