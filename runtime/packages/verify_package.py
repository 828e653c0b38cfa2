"""Runs a package's own check on this machine, and writes a certificate that is bound to the bundle's.

Nothing that lies in a package is run as a program: sources are compared with those of this fr-edge, and
a copy of these is what runs, on the package's models and golden faces.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from ..._version import __version__
from ...bundle.manifest import inside, linked_part
from ...documents import encode_json, read_json
from ...errors import DataError, FrEdgeError, MachineError, NotStored
from ...files import sha256, write_atomic
from ...onnx_file import read_onnx
from ...reading import open_file, read_limit
from ...trial_run import ensure_runnable
from ..evaluation.gates import FAILED, PASSED
from .package import CERTIFICATE, PACKAGE_FILE, PACKAGE_SCHEMA, PackageManifest
from .package_draft import MIN_COSINE, extra_programs, template_files

_SIDE = 64  # pixels of a frame in the trial run of a model
_ANSWER = re.compile(r"^faces=(\d+) min_cosine=(\S+) ", re.MULTILINE)
_DATA = (".onnx", ".ppm", ".f32", ".plan", ".pbtxt", ".json", ".txt")  # never run as programs


@dataclass(frozen=True)
class PackageProof:
    """One program that ran, or that could not run here.

    Attributes:
        program: In words, with the versions of what it uses.
        faces: Golden faces that it compared.
        min_cosine: The lowest cosine to the bundle's embeddings; None where it is not a number.
        verdict: "PASSED" or "FAILED".
    """

    program: str
    faces: int
    min_cosine: float | None
    verdict: str


@dataclass(frozen=True)
class PackageCertificate:
    """What `fr-edge verify --package` found; certificate.json holds it.

    Attributes:
        verdict: "PASSED" where every program that ran has passed.
        package_sha256: Of package.json, which holds the sha256 of every other file and of the bundle.
        bundle_manifest_sha256: Of the bundle's bundle.json.
        bundle_model_sha256: Of the bundle's network.
        bundle_certificates: The bundle's reports of `fr-edge verify` -> sha256 and verdict.
        min_cosine: The limit.
        proofs: The programs that ran.
        not_measured: What could not run here, and why.
        time: UTC, ISO 8601.
    """

    verdict: str
    target: str
    precision: str
    package_sha256: str
    bundle_manifest_sha256: str
    bundle_model_sha256: str
    bundle_certificates: Mapping[str, Mapping[str, str]]
    min_cosine: float
    proofs: tuple[PackageProof, ...]
    not_measured: tuple[str, ...]
    time: str
    fr_edge: str = __version__

    @property
    def passed(self) -> bool:
        return self.verdict == PASSED


def read_package(folder: str | Path) -> PackageManifest:
    """Read a package's list of files and check them all.

    Args:
        folder: The package's.

    Raises:
        DataError: It is not a package, it is of another fr-edge, or a file is missing, was changed,
            was added to the list, or is a program that this fr-edge does not ship.
    """
    root = Path(folder)
    path = root / PACKAGE_FILE
    if not root.is_dir() or not path.is_file() or path.is_symlink():
        raise DataError(
            f"{root} is not a package: it has no {PACKAGE_FILE}", "`fr-edge package` makes one"
        )
    again = "make it again with `fr-edge package`"
    try:
        manifest = read_json(path, PackageManifest)
    except DataError as error:
        raise DataError(error.message, error.hint or again) from error
    if manifest.schema != PACKAGE_SCHEMA or manifest.target not in CHECKS:
        raise DataError(
            f"{path}: schema {manifest.schema} and target {manifest.target!r} are unknown here",
            again,
        )
    if manifest.min_cosine != MIN_COSINE.get(manifest.precision):
        raise DataError(f"{path} was edited: its limit is {manifest.min_cosine}", again)
    needed = template_files(manifest.target)
    sources = needed | extra_programs(manifest.target)
    for name, digest in manifest.files.items():
        try:
            inside(name)
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}", again) from error
        file = root / name
        if link := linked_part(root, name):
            raise DataError(f"{link} is a link; a package holds no links", again)
        if not file.is_file():
            raise DataError(f"{file} is missing", again)
        if sha256(file) != digest:
            raise DataError(f"{file} was edited: its sha256 is not that of {PACKAGE_FILE}", again)
        if name in sources and digest != sha256(sources[name]):
            raise DataError(
                f"{file} is not the program that fr-edge {__version__} ships: it was edited, or the"
                f" package is of fr-edge {manifest.fr_edge}",
                again,
            )
        if name not in sources and file.suffix not in _DATA:
            raise DataError(f"{file} does not belong to a package for {manifest.target}", again)
    if missing := sorted(set(needed) - set(manifest.files)):
        raise DataError(f"{path} was edited: it does not list {missing[0]}", again)
    return manifest


def verify_package(folder: str | Path) -> PackageCertificate:
    """Run a package's check here, and write its certificate.

    Args:
        folder: The package's.

    Returns:
        The certificate, which certificate.json in the package holds too.

    Raises:
        DataError: As `read_package`.
        MachineError: This machine lacks what the check needs, for example a compiler.
        NotStored: The certificate could not be written.
    """
    root = Path(folder)
    manifest = read_package(root)
    digest = sha256(root / PACKAGE_FILE)
    for name in manifest.files:
        if name.endswith(".onnx"):
            ensure_runnable(read_onnx(root / name), str(root / name), (_SIDE, _SIDE))
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "package"
        _copy(root, copy, manifest)
        proofs, not_measured = CHECKS[manifest.target](copy, manifest)
    passed = bool(proofs) and all(proof.verdict == PASSED for proof in proofs)
    certificate = PackageCertificate(
        PASSED if passed else FAILED,
        manifest.target,
        manifest.precision,
        digest,
        manifest.bundle.manifest_sha256,
        manifest.bundle.model_sha256,
        manifest.bundle.certificates,
        manifest.min_cosine,
        tuple(proofs),
        (*not_measured, *_unlisted(root, manifest)),
        datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    try:
        write_atomic(root / CERTIFICATE, encode_json(certificate))
    except OSError as error:
        raise NotStored(certificate, error) from error
    return certificate


def _unlisted(root: Path, manifest: PackageManifest) -> list[str]:
    """What lies in the folder besides the package, in words: a program there would find it first."""
    listed = {PACKAGE_FILE, CERTIFICATE, *manifest.files}
    present = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    others = [name for name in present if name not in listed]
    if not others:
        return []
    files = f"{len(others)} files" if len(others) > 1 else "a file"
    such_as = ", such as" if len(others) > 1 else ","
    return [f"{files} that {PACKAGE_FILE} does not list{such_as} {others[0]}"]


def _copy(root: Path, copy: Path, manifest: PackageManifest) -> None:
    """The package with this fr-edge's programs; the bytes of each file are checked again."""
    sources = template_files(manifest.target) | extra_programs(manifest.target)
    for name, digest in manifest.files.items():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(sources.get(name, root / name)) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out)
        if sha256(target) != digest:
            raise DataError(f"{root / name} changed while it was read", "run this again")


def run_check(
    command: list[str], folder: Path, what: str, kind: type[FrEdgeError] = MachineError
) -> str:
    """The standard output of a program of this fr-edge that runs on a package.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        what: In words, for errors.
        kind: Class of the error where it ends with one.

    Raises:
        MachineError: It does not start, does not end, or ends with an error.
        DataError: It ends with an error, where that is `kind`: the package's data cannot be read.
    """
    seconds = read_limit("APART_SECONDS") * 5
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise MachineError(f"{what}: there is no {command[0]}", "install it") from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{what} did not end within {seconds} s") from error
    if done.returncode not in (0, 1) or (done.returncode and not _ANSWER.search(done.stdout)):
        text = " ".join((done.stderr.strip() or done.stdout.strip() or "no message").split())
        text = text[max(0, text.lower().find("error: ")) :][:300]
        raise kind(f"{what} ended with code {done.returncode}: {text}")
    return done.stdout


def read_answer(text: str, program: str, manifest: PackageManifest) -> PackageProof:
    """What a check printed, judged by the package's limit.

    Args:
        text: Its standard output.
        program: What ran, in words.
        manifest: The package's.

    Raises:
        MachineError: It printed no result.
    """
    answer = _ANSWER.search(text)
    if answer is None:
        raise MachineError(f"{program} printed no result: {text.strip()[-200:]}")
    faces = int(answer[1])
    try:
        cosine = float(answer[2])
    except ValueError:
        cosine = float("nan")
    passed = cosine >= manifest.min_cosine and faces == manifest.golden_faces
    return PackageProof(
        program, faces, cosine if cosine == cosine else None, PASSED if passed else FAILED
    )


_Proofs = tuple[list[PackageProof], list[str]]


def _python(script: str) -> Callable[[Path, PackageManifest], _Proofs]:
    def check(folder: Path, manifest: PackageManifest) -> _Proofs:
        import onnxruntime

        program = (
            f"{script}, Python {sys.version.split()[0]}, onnxruntime {onnxruntime.__version__}"
        )
        text = run_check([sys.executable, "-s", "-B", script], folder, script, DataError)
        return [read_answer(text, program, manifest)], []

    return check


def _triton(folder: Path, manifest: PackageManifest) -> _Proofs:
    """The repository's ONNX models on the golden faces; a server is not started."""
    note = "a running server: `python verify_server.py HOST:PORT` replays the golden faces on it"
    if manifest.not_run:
        reason = "; ".join(f"{name}: {why}" for name, why in manifest.not_run.items())
        raise MachineError(f"the models cannot run here: {reason}", note)
    proofs, _ = _python("verify_repository.py")(folder, manifest)
    return proofs, [note]


def _deepstream(folder: Path, manifest: PackageManifest) -> _Proofs:
    """The configurations' numbers; neither DeepStream nor a plan is run."""
    proofs, _ = _python("verify_config.py")(folder, manifest)
    notes = [
        "DeepStream: a pipeline, and the compilation of its library",
        *(f"{name}: {why}" for name, why in manifest.not_run.items()),
    ]
    return proofs, notes


def _cpp(folder: Path, manifest: PackageManifest) -> _Proofs:
    """Compile the sample against the ONNX Runtime that CMake finds, and run it."""
    build, what = folder / "build", "the C++ sample"
    for program in ("cmake", os.environ.get("CXX") or "c++"):
        if shutil.which(program) is None:
            raise MachineError(
                f"{what} needs {program}, which is not installed",
                "install cmake and a C++17 compiler, for example `apt install cmake g++`",
            )
    quick = "-DCMAKE_CXX_FLAGS_RELEASE=-O1"  # compiles in two thirds of the time
    run_check(["cmake", "-S", ".", "-B", "build", quick], folder, what)
    run_check(["cmake", "--build", "build"], folder, what)
    text = run_check([str(build / "face_sample"), "verify", "."], folder, what)
    note = "the TensorRT side: compile it on a board with -DFR_EDGE_TENSORRT=ON"
    return [read_answer(text, "face_sample, C++ with ONNX Runtime's C API", manifest)], [note]


CHECKS: dict[str, Callable[[Path, PackageManifest], _Proofs]] = {
    "onnx": _python("verify_models.py"),
    "cpp": _cpp,
    "python": _python("verify_sample.py"),
    "triton": _triton,
    "deepstream": _deepstream,
}
