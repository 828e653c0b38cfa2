"""Makes a package of a bundle: a folder that another runtime loads, with golden faces that prove it."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..._version import __version__
from ...bundle.bundle import open_bundle
from ...bundle.draft_folder import draft_beside
from ...bundle.manifest import MANIFEST, Bundle
from ...documents import encode_json
from ...errors import BundleError, UsageError
from ...files import sha256, sync
from ...graph.frame_input import INPUT_KINDS
from ...onnx_file import read_onnx
from ..evaluation.result import VerifyResult
from ..evaluation.stored_reports import read_reports
from ..fingerprint import SOURCES
from ..onnxruntime_session import ONNXRUNTIME
from ..session import open_session
from .deepstream_config import write_deepstream
from .package_draft import MIN_COSINE, PackageDraft, golden_answers
from .triton_repository import write_triton

logger = logging.getLogger(__name__)

PACKAGE_FILE = "package.json"  # lists the others with their sha256
CERTIFICATE = "certificate.json"  # written by `fr-edge verify --package`
PACKAGE_SCHEMA = 1
PACKAGED = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class BundleEvidence:
    """What ties a package to its bundle.

    Attributes:
        manifest_sha256: Of the bundle's bundle.json.
        model: The bundle's network that the package was made of.
        model_sha256: Its sha256.
        certificates: Report of `fr-edge verify` of that precision -> its sha256, verdict and whether
            the bundle still holds what it judged.
    """

    manifest_sha256: str
    model: str
    model_sha256: str
    certificates: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class PackageManifest:
    """What package.json holds.

    Attributes:
        target: A key of `TARGETS`.
        precision: "fp32", "fp16" or "int8".
        min_cosine: The limit that the package's own check holds the golden faces to.
        golden_faces: Lines of golden/faces.txt.
        measured: What the models take -> lowest cosine with the bundle's embeddings when it was made.
        left_out: What the package lacks -> the reason.
        not_run: What no check can run on a machine like that which made it -> the reason.
        files: Path -> sha256 of every other file.
    """

    target: str
    precision: str
    bundle: BundleEvidence
    min_cosine: float
    golden_faces: int
    measured: Mapping[str, float]
    left_out: Mapping[str, str]
    not_run: Mapping[str, str]
    files: Mapping[str, str]
    fr_edge: str = __version__
    schema: int = PACKAGE_SCHEMA


@dataclass(frozen=True)
class PackageResult:
    """A package that was written.

    Attributes:
        out: Its folder.
        manifest: What its package.json holds.
        sha256: Of package.json.
        size: Bytes of all its files.
    """

    out: Path
    manifest: PackageManifest
    sha256: str
    size: int


def _onnx(draft: PackageDraft) -> None:
    """One model per input kind; those that the contract does not allow are left out."""
    kinds = []
    for kind in INPUT_KINDS:
        try:
            draft.add_model(kind)
            kinds.append(kind)
        except BundleError as error:
            if kind == "tensor":  # takes every contract
                raise
            draft.left_out[f"{kind}.onnx"] = error.message
    draft.add_golden(*kinds)


def _python(draft: PackageDraft) -> None:
    """A Python program, and the model that takes frames with landmarks."""
    draft.add_model("frame", onnxruntime_only=True)
    draft.add_golden("crop", "frame")


def _cpp(draft: PackageDraft) -> None:
    """C++ sources with the same model, the bundle's detector, and its plans that take frames."""
    _python(draft)
    draft.add_detector(("YuNet", "SCRFD"))
    draft.add_plans("frame")


TARGETS: dict[str, Callable[[PackageDraft], None]] = {
    "onnx": _onnx,
    "cpp": _cpp,
    "python": _python,
    "triton": write_triton,
    "deepstream": write_deepstream,
}


def package(
    bundle: Bundle | str | Path,
    target: str,
    out: str | Path,
    precision: str = "fp32",
) -> PackageResult:
    """Make a package of a bundle.

    Args:
        bundle: An open bundle or its folder.
        target: A key of `TARGETS`.
        out: The folder to make.
        precision: "fp32", "fp16" or "int8": which of the bundle's networks.

    Raises:
        UsageError: An unknown name, or `out` exists.
        BundleError: The bundle lacks what the target needs, the target cannot express the contract,
            or the package's models do not give the bundle's embeddings.
        MachineError: The folder cannot be written.
    """
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}", f"targets: {', '.join(TARGETS)}")
    if precision not in PACKAGED:
        raise UsageError(f"no package of {precision!r}", f"engines: {', '.join(PACKAGED)}")
    folder = Path(out).absolute()
    if os.path.lexists(folder):
        raise UsageError(f"{out} exists", "choose a new folder for --out")
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    with open_session(bundle, precision, ONNXRUNTIME, artifact="graph") as session:
        model = read_onnx(bundle.file(SOURCES[precision]))
        evidence = _evidence(bundle, precision)
        answers = golden_answers(session, bundle.spec.crop_side)
    with draft_beside(folder, force=False) as root:
        draft = PackageDraft(root, bundle, precision, model, answers)
        draft.add_templates(target)
        TARGETS[target](draft)
        files = {
            path.relative_to(root).as_posix(): sha256(path)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        size = sum((root / name).stat().st_size for name in files)
        manifest = PackageManifest(
            target=target,
            precision=precision,
            bundle=evidence,
            min_cosine=MIN_COSINE[precision],
            golden_faces=len(draft.golden),
            measured=draft.measured,
            left_out=draft.left_out,
            not_run=draft.not_run,
            files=files,
        )
        data = encode_json(manifest)
        (root / PACKAGE_FILE).write_bytes(data)
        for path in sorted(root.rglob("*")):
            sync(path)
    digest = hashlib.sha256(data).hexdigest()
    return PackageResult(Path(out), manifest, digest, size + len(data))


def _evidence(bundle: Bundle, precision: str) -> BundleEvidence:
    certificates = {
        stored.file: {
            "sha256": bundle.files[stored.file].sha256,
            "verdict": stored.report.verdict,
            "judged": stored.report.judged,
            "stale": stored.stale,
        }
        for stored in read_reports(bundle)
        if isinstance(stored.report, VerifyResult) and stored.report.engine == precision
    }
    if not certificates:
        logger.warning(
            "%s holds no report of `fr-edge verify --engine %s`: the package will equal the bundle,"
            " which is not certified itself",
            bundle.root,
            precision,
        )
    name = SOURCES[precision]
    return BundleEvidence(
        sha256(bundle.root / MANIFEST), name, bundle.files[name].sha256, certificates
    )
