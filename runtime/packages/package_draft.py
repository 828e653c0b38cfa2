"""A package being written: its files, and golden faces with the bundle's embeddings of them.

The golden faces are drawn. What they are compared with are the bundle's own embeddings, computed by
its graph on the host's alignment and contract; a model that does not give these is not written.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ...arrays import F32, U8
from ...bundle.manifest import Bundle
from ...errors import BundleError
from ...faces.contract import preprocess, resize_face
from ...faces.stored_detector import DETECTOR, DETECTOR_SPEC, DetectorSpec, read_detector_spec
from ...faces.synthetic.render import draw_face
from ...graph.cpu_int8 import cpu_model
from ...graph.frame_input import InputKind
from ..fingerprint import SOURCES, EngineKind
from ..frames import draw_frame, unit_length
from ..onnxruntime_session import make_cpu_session
from ..session import Session
from .package_models import package_model

TEMPLATES = Path(__file__).parent / "templates"

# The lowest cosine of a golden face with the bundle's embedding. In FP32 only the order of sums
# differs. FP16 and INT8 round at each layer, and where two kernels sum in another order a value falls
# to the other side: between the ways in which onnxruntime runs one INT8 MobileFaceNet it is .9986.
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.99}
_MIN_ALIGNED = 0.999  # with the host's alignment, as `verify` asks of frame engines

_CROPS, _FRAMES, _SEED = 6, 2, 22  # golden faces, and what they are drawn from


@dataclass
class GoldenAnswers:
    """Golden faces, and the bundle's unit embeddings of them.

    Attributes:
        crops: Aligned faces `(K, S, S, 3) uint8`, S the contract's `crop_side`.
        crop_embeddings: `(K, D) float32`.
        frames: Frames `(H, W, 3) uint8` with the landmarks `(1, 5, 2) float32` of one face each.
        frame_embeddings: `(F, D) float32`; of the host's alignment until a model with frame input
            has been found to agree with it, then of that model.
    """

    crops: U8
    crop_embeddings: F32
    frames: tuple[tuple[U8, F32], ...]
    frame_embeddings: F32

    def check(self, session: Any, kind: InputKind, precision: str, bundle: Bundle) -> float:
        """The lowest cosine of a model's embeddings of the golden faces with the bundle's.

        Raises:
            BundleError: It is below the limit.
        """
        if kind == "frame":
            own = np.concatenate([run_model(session, frame[None], p) for frame, p in self.frames])
            expected = self.frame_embeddings
            limit = min(_MIN_ALIGNED, MIN_COSINE[precision])
        else:
            inputs = preprocess(self.crops, bundle.spec) if kind == "tensor" else self.crops
            own = np.concatenate(
                [run_model(session, inputs[i : i + 1]) for i in range(len(inputs))]
            )
            expected, limit = self.crop_embeddings, MIN_COSINE[precision]
        worst = float((own * expected).sum(1).min())
        if not worst >= limit:  # NaN is not
            raise BundleError(
                f"the package's {kind} model does not give the bundle's embeddings: the lowest cosine"
                f" is {worst:.6f}, at least {limit:g} is needed",
                f"`fr-edge verify {bundle.root} --artifact graph` shows whether the bundle is sound",
            )
        if kind == "frame":
            self.frame_embeddings = own
        return worst


@dataclass
class PackageDraft:
    """A package being written; a target's function adds its files.

    Attributes:
        root: The folder.
        bundle: The bundle, open.
        precision: Of its network.
        model: The bundle's network.
        expected: The bundle's answers about the golden faces.
        golden: Lines of golden/faces.txt.
        measured: As `PackageManifest`.
        left_out: As `PackageManifest`.
        not_run: As `PackageManifest`.
    """

    root: Path
    bundle: Bundle
    precision: str
    model: ModelProto
    expected: GoldenAnswers
    golden: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def add_templates(self, target: str) -> None:
        """Copy the files that every package of a target has."""
        for source in template_files(target).values():
            name = source.relative_to(TEMPLATES / target)
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(source.read_bytes())

    def add_model(self, kind: InputKind, name: str = "", *, onnxruntime_only: bool = False) -> None:
        """Write the network as a model of an input kind.

        Args:
            kind: What the model takes.
            name: Its path in the package; by default that of the kind.
            onnxruntime_only: Whether only onnxruntime's CPU is to run it, in the operators that it is
                fast at, as it runs the bundle's.

        Raises:
            BundleError: The contract cannot be expressed so, or the model's embeddings are not the
                bundle's.
        """
        source = self.bundle.files[SOURCES[self.precision]].sha256
        network = cpu_model(self.model) if onnxruntime_only else self.model
        model = package_model(network, self.bundle.spec, kind, self.precision, source)
        data = model.SerializeToString()
        path = self.root / (name or f"{kind}.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        session = make_cpu_session(data, path.name)
        worst = self.expected.check(session, kind, self.precision, self.bundle)
        self.measured[kind] = worst

    def add_detector(self, families: tuple[str, ...]) -> DetectorSpec | None:
        """Write the bundle's detector with how it is fed and read, as text.

        Args:
            families: That the target decodes.

        Returns:
            How it is fed and read; None where the bundle has none, or one of another family.
        """
        if DETECTOR not in self.bundle:
            self.left_out[DETECTOR] = "the bundle has no detector: `fr-edge export --role detector`"
            return None
        spec = read_detector_spec(self.bundle.file(DETECTOR_SPEC))
        if spec.family not in families:
            self.left_out[DETECTOR] = f"{spec.family} is not decoded, only {', '.join(families)}"
            return None
        (self.root / DETECTOR).write_bytes(self.bundle.file(DETECTOR).read_bytes())
        (self.root / "detector.txt").write_text(
            "\n".join(detector_lines(spec)) + "\n", encoding="ascii"
        )
        return spec

    def add_plans(self, kind: EngineKind) -> tuple[str, ...]:
        """Copy the bundle's TensorRT engines of the precision, with their fingerprints.

        Args:
            kind: What they take, or "detector".

        Returns:
            Their paths, the same in the package as in the bundle.
        """
        names = plans_of(self.bundle, self.precision, kind)
        for name in names:
            for file in (name, f"{name}.json"):
                (self.root / file).parent.mkdir(exist_ok=True)
                (self.root / file).write_bytes(self.bundle.file(file).read_bytes())
        if not names:
            self.left_out[f"engines/tensorrt-*-{self.precision}-{kind}.plan"] = (
                "the bundle has no such engine: build it on the board with `fr-edge build-engine"
                f" BUNDLE --{self.precision} --backend tensorrt"
                f"{' --role detector' if kind == 'detector' else f' --input {kind}'}`"
            )
        return names

    def add_golden(self, *kinds: InputKind) -> None:
        """Write golden faces for what the package's models take."""
        folder = self.root / "golden"
        folder.mkdir(exist_ok=True)
        answers = self.expected
        for index, face in enumerate(answers.crops):
            if "crop" in kinds:
                write_ppm(folder / f"crop_{index}.ppm", face)
                self._line("crop", f"crop_{index}.ppm", answers.crop_embeddings[index])
            if "tensor" in kinds:
                tensor = preprocess(face[None], self.bundle.spec)
                (folder / f"tensor_{index}.f32").write_bytes(tensor.astype("<f4").tobytes())
                self._line("tensor", f"tensor_{index}.f32", answers.crop_embeddings[index])
        if "frame" in kinds:
            for index, (frame, points) in enumerate(answers.frames):
                write_ppm(folder / f"frame_{index}.ppm", frame)
                values = np.concatenate([points.reshape(-1), answers.frame_embeddings[index]])
                self._line("frame", f"frame_{index}.ppm", values)
        lines = [f"min_cosine {MIN_COSINE[self.precision]:g}", *self.golden]
        (folder / "faces.txt").write_text("\n".join(lines) + "\n", encoding="ascii")

    def _line(self, kind: InputKind, name: str, values: F32) -> None:
        self.golden.append(" ".join([kind, name, *(f"{v:.9g}" for v in values)]))


def golden_answers(session: Session, side: int) -> GoldenAnswers:
    """Draw golden faces, and embed them.

    Args:
        session: The bundle's.
        side: Of its aligned faces in pixels: the contract's `crop_side`.
    """
    faces = [draw_face(identity, 0, _SEED) for identity in range(_CROPS)]
    random = np.random.default_rng(_SEED)
    frames = tuple(draw_frame(face, random) for face in faces[:_FRAMES])
    crops = np.stack([resize_face(face, side) if side != len(face) else face for face in faces])
    return GoldenAnswers(
        crops,
        unit_length(session.embed(crops)),
        frames,
        np.concatenate([session.embed_frame(frame, points) for frame, points in frames]),
    )


def detector_lines(spec: DetectorSpec) -> list[str]:
    """How a detector is fed and read, as lines of a key and its values.

    Args:
        spec: Of the bundle's detector.
    """
    return [
        f"family {spec.family}",
        f"channels {spec.channels}",
        "mean {:.9g} {:.9g} {:.9g}".format(*spec.mean),
        "std {:.9g} {:.9g} {:.9g}".format(*spec.std),
        f"min_score {spec.min_score:.9g}",
        f"size {spec.height} {spec.width}",
        f"any_size {int(spec.any_size)}",
    ]


def plans_of(bundle: Bundle, precision: str, kind: EngineKind) -> tuple[str, ...]:
    """The TensorRT engines of a bundle, for whatever board they were built.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16" or "int8".
        kind: What they take, or "detector".
    """
    ending = f"-{precision}{'' if kind == 'tensor' else f'-{kind}'}.plan"
    return tuple(
        name
        for name in sorted(bundle.files)
        if name.startswith("engines/tensorrt-")
        and not name.startswith("engines/tensorrt-rtx-")
        and name.endswith(ending)
        and f"{name}.json" in bundle
    )


def run_model(session: Any, first: U8 | F32, landmarks: F32 | None = None) -> F32:
    """Run a package's model.

    Args:
        session: An onnxruntime session.
        first: Its first input.
        landmarks: Of a model with frame input.

    Returns:
        `(N, D) float32`.
    """
    names = [value.name for value in session.get_inputs()]
    arrays = [first] if landmarks is None else [first, landmarks]
    embeddings: F32 = session.run(None, dict(zip(names, arrays, strict=True)))[0]
    return embeddings


def template_files(target: str) -> dict[str, Path]:
    """Files that every package of a target has: name within the package -> file of this fr-edge.

    Args:
        target: A key of `TARGETS`.
    """
    folder = TEMPLATES / target
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def extra_programs(target: str) -> dict[str, Path]:
    """Programs that some packages of a target have: name within the package -> file of this fr-edge.

    Args:
        target: A key of `TARGETS`.
    """
    return (
        {"models/recognise/1/model.py": TEMPLATES / "bls" / "model.py"}
        if target == "triton"
        else {}
    )


def write_ppm(path: Path, image: U8) -> None:
    """Write a binary PPM image.

    Args:
        path: The file.
        image: `(H, W, 3) uint8`, RGB.
    """
    header = f"P6\n{image.shape[1]} {image.shape[0]}\n255\n".encode("ascii")
    path.write_bytes(header + np.ascontiguousarray(image).tobytes())
