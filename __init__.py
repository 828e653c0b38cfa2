"""fr-edge: from a face-recognition teacher to a verified INT8 or FP16 engine on the edge.

The repository's root is this package, so a path on disk is an import path. The names below are
loaded with their stage when they are first used, so `import fr_edge` costs nothing. `fr_edge.export`
and `fr_edge.distill` are stages; their functions are `export_onnx` and `distill_student`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .bundle.bundle import open_bundle as open_bundle
    from .bundle.manifest import Bundle as Bundle
    from .calibration.calibrate import calibrate as calibrate
    from .calibration.detector_calibration import calibrate_detector as calibrate_detector
    from .calibration.qdq import quantize_onnx as quantize_onnx
    from .calibration.search.budget import Budget as Budget
    from .distill.train import distill_student as distill_student
    from .errors import BundleError as BundleError
    from .errors import DataError as DataError
    from .errors import FacesError as FacesError
    from .errors import FrEdgeError as FrEdgeError
    from .errors import GateFailed as GateFailed
    from .errors import MachineError as MachineError
    from .errors import ModelError as ModelError
    from .errors import UsageError as UsageError
    from .export.detector_export import export_detector as export_detector
    from .export.export import export_onnx as export_onnx
    from .faces.align import align as align
    from .faces.contract import InputSpec as InputSpec
    from .faces.detect import open_detector as open_detector
    from .faces.photographs import open_photographs as open_photographs
    from .faces.sources import open_faces as open_faces
    from .metrics.verification import cosines as cosines
    from .runtime.benchmark.benchmark import benchmark as benchmark
    from .runtime.benchmark.frame_benchmark import benchmark_frames as benchmark_frames
    from .runtime.build import build_engine as build_engine
    from .runtime.detector_engine import build_detector_engine as build_detector_engine
    from .runtime.evaluation.evaluate import evaluate as evaluate
    from .runtime.evaluation.verify import verify as verify
    from .runtime.evaluation.verify_photographs import verify_photographs as verify_photographs
    from .runtime.recognition.face_gallery import Gallery as Gallery
    from .runtime.recognition.gallery_migration import migrate_gallery as migrate_gallery
    from .runtime.recognition.recogniser import Recogniser as Recogniser
    from .runtime.session import embed as embed
    from .runtime.session import open_session as open_session
    from .runtime.trt.config import EngineOptions as EngineOptions

_HOMES = {
    "Bundle": ".bundle.manifest",
    "open_bundle": ".bundle.bundle",
    "InputSpec": ".faces.contract",
    "open_faces": ".faces.sources",
    "open_detector": ".faces.detect",
    "align": ".faces.align",
    "distill_student": ".distill.train",
    "export_onnx": ".export.export",
    "calibrate": ".calibration.calibrate",
    "Budget": ".calibration.search.budget",
    "quantize_onnx": ".calibration.qdq",
    "EngineOptions": ".runtime.trt.config",
    "build_engine": ".runtime.build",
    "open_session": ".runtime.session",
    "embed": ".runtime.session",
    "Recogniser": ".runtime.recognition.recogniser",
    "Gallery": ".runtime.recognition.face_gallery",
    "migrate_gallery": ".runtime.recognition.gallery_migration",
    "cosines": ".metrics.verification",
    "verify": ".runtime.evaluation.verify",
    "evaluate": ".runtime.evaluation.evaluate",
    "benchmark": ".runtime.benchmark.benchmark",
    "open_photographs": ".faces.photographs",
    "export_detector": ".export.detector_export",
    "calibrate_detector": ".calibration.detector_calibration",
    "build_detector_engine": ".runtime.detector_engine",
    "verify_photographs": ".runtime.evaluation.verify_photographs",
    "benchmark_frames": ".runtime.benchmark.frame_benchmark",
    **dict.fromkeys(
        (
            "FrEdgeError", "UsageError", "GateFailed", "MachineError", "DataError", "BundleError",
            "FacesError", "ModelError",
        ),
        ".errors",
    ),
}  # fmt: skip

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fr_edge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
