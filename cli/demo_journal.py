"""The demo's plan and its record, demo.json: finished stages are read from it, not repeated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..distill.recipe import read_recipe
from ..documents import encode_json, read_json, to_builtins
from ..errors import DataError
from ..files import write_atomic


@dataclass(frozen=True)
class DemoPlan:
    """Faces of the demo: synthetic people, of other seeds for each purpose.

    Attributes:
        training: Source of the faces that train the teacher and the student.
        calibration: Source of the faces that calibrate INT8.
        judging: Source of the faces that the networks and engines are judged on.
        changes: Changes of both recipes, `key=value`, as `fr-edge distill --set` takes them.
    """

    training: str = "synthetic:120x16@1"
    calibration: str = "synthetic:64x4@2"
    judging: str = "synthetic:60x10@3"
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemoStage:
    """A finished stage.

    Attributes:
        stage: Its name.
        made: The file that it wrote, or another result.
        figure: Its main figure, as text.
        seconds: Its duration.
        numbers: Figures that the gates need, by name.
    """

    stage: str
    made: str
    figure: str
    seconds: float
    numbers: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    """The content of demo.json."""

    key: dict[str, Any]
    stages: list[DemoStage]


def read_stages(home: Path, plan: DemoPlan) -> dict[str, DemoStage]:
    """The finished stages of a demo.

    Args:
        home: The demo's folder; it may lack demo.json.
        plan: What the demo is to do.

    Returns:
        Name to stage, in the order in which they were finished.

    Raises:
        DataError: demo.json is damaged, or of another plan, recipe or version of fr-edge.
    """
    file = home / "demo.json"
    if not file.exists():
        return {}
    try:
        record = read_json(file, _Record)
    except DataError as error:
        raise DataError(error.message, f"remove {home}, or choose another --out") from error
    if record.key != _key(plan):
        raise DataError(
            f"{home} holds the demo of another version of fr-edge or of its recipes",
            f"remove {home}, or choose another --out",
        )
    return {stage.stage: stage for stage in record.stages}


def write_stages(home: Path, plan: DemoPlan, stages: Mapping[str, DemoStage]) -> None:
    """Replace demo.json atomically.

    Args:
        home: The demo's folder.
        plan: What the demo is to do.
        stages: Name to finished stage.
    """
    record = _Record(_key(plan), list(stages.values()))
    write_atomic(home / "demo.json", encode_json(record))


def _key(plan: DemoPlan) -> dict[str, Any]:
    """A finished stage counts while this is equal."""
    recipes = [read_recipe(name) for name in ("tiny-teacher", "tiny")]
    key: dict[str, Any] = to_builtins({"version": __version__, "recipes": recipes, "plan": plan})
    return key
