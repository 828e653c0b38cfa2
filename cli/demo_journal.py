"""What the demo plans and has finished: demo.json, so that no stage is done twice."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..distill.recipe import read_recipe, recipe_to_json
from ..errors import DataError
from ..files import write_atomic


@dataclass(frozen=True)
class Plan:
    """Drawn people, told apart by the seed after @: nobody is judged who was trained or calibrated
    on. `changes` are for both recipes, as `--set` takes them."""

    training: str = "synthetic:120x16@1"
    calibration: str = "synthetic:64x4@2"
    judging: str = "synthetic:60x10@3"
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    stage: str
    made: str
    figure: str
    seconds: float


def _key(plan: Plan) -> dict[str, Any]:
    """What must be equal for a finished stage to count."""
    return {
        "version": __version__,
        "recipes": [recipe_to_json(read_recipe(name)) for name in ("tiny-teacher", "tiny")],
        "plan": asdict(plan),
    }


def kept(home: Path, plan: Plan) -> dict[str, Any]:
    """Stage -> what is known of it; raises DataError for a demo of other recipes or faces."""
    file = home / "demo.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["key"] == json.loads(json.dumps(_key(plan))):
            stages: dict[str, Any] = found["stages"]
            return stages
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error}", f"remove {home}") from error
    raise DataError(
        f"{home} holds the demo of another version of fr-edge or of its recipes",
        f"remove {home}, or choose another --out",
    )


def keep(home: Path, plan: Plan, stages: Mapping[str, Any]) -> None:
    """Write it down, all or nothing."""
    text = json.dumps({"key": _key(plan), "stages": stages}, indent=1) + "\n"
    write_atomic(home / "demo.json", text.encode())
