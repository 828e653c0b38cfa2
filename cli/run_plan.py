"""What `fr-edge run` is to do, and run.toml, which holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..documents import convert, encode_json, read_toml
from ..errors import DataError, UsageError
from ..faces.contract import make_spec
from ..faces.detect import FacePolicy
from ..runtime.fingerprint import PRECISIONS


@dataclass(frozen=True)
class RunPlan:
    """What `fr-edge run` does, as run.toml holds it.

    Attributes:
        photos: Photographs in a folder per person; without a detector any source of aligned faces.
        model: The network, as `fr-edge export` takes it.
        detector: ONNX file that finds faces and landmarks; "" where the faces are aligned.
        faces: Which of several faces in a photograph: "one" (leave it out), "largest", "central", "all".
        preset: The input contract; "" to find it on the faces, or for a bundle that has its own.
        precisions: "fp32", "fp16", "fp8", "int8"; empty for fp32, int8, and fp16 where its numbers
            fit.
        backend: As `fr-edge build-engine` takes it.
        policy: TOML file with limits; "" for the defaults.
        calibration_share: Share of the people that INT8 is calibrated on; the others judge.
        seed: Decides which people.
        batch: Faces in a timed run.
        duration_s: Timing of each engine, seconds.
    """

    photos: str
    model: str
    detector: str = ""
    faces: FacePolicy = "one"
    preset: str = ""
    precisions: tuple[str, ...] = ()
    backend: str = "auto"
    policy: str = ""
    calibration_share: float = 0.3
    seed: int = 0
    batch: int = 1
    duration_s: float = 5.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown:
            raise UsageError(f"no precision {unknown[0]!r}", f"precisions: {', '.join(PRECISIONS)}")
        if not 0 < self.calibration_share < 1:
            raise UsageError(
                f"the share of people that calibrate is between 0 and 1, found"
                f" {self.calibration_share}"
            )
        if self.batch < 1 or self.duration_s <= 0:
            raise UsageError("the batch is 1 or more, and the duration above 0")


def read_plan(path: Path | None, given: Mapping[str, Any]) -> RunPlan:
    """The plan of a file and of the command line, which comes first.

    Args:
        path: run.toml, or None.
        given: Fields of `RunPlan`; those that are None are not given.

    Raises:
        DataError: The file is not a plan, or the policy cannot be read.
        UsageError: Photographs or network are missing, or a value is impossible.
    """
    values = read_toml(path) if path else {}
    known = {field.name for field in fields(RunPlan)}
    if unknown := sorted(set(values) - known):
        raise DataError(
            f"{path} has unknown keys: {', '.join(unknown)}", f"keys: {', '.join(sorted(known))}"
        )
    values |= {name: value for name, value in given.items() if value is not None}
    if not values.get("photos") or not values.get("model"):
        raise UsageError(
            "photographs and a network are needed", "fr-edge run PHOTOS MODEL, or --config run.toml"
        )
    plan = convert(values, RunPlan, path or "the command line")
    if plan.preset:
        make_spec(plan.preset)
    if plan.policy:
        read_toml(Path(plan.policy))
    return plan


def encode_plan(plan: RunPlan) -> bytes:
    """The plan as a file that `--config` takes; JSON's strings, numbers and lists are TOML's too.

    Args:
        plan: The plan.
    """
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    rows = [f"{name} = {encode_json(value, indent=0).decode()}" for name, value in values.items()]
    return ("# fr-edge run --config run.toml\n" + "".join(rows)).encode()
