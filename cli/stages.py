"""Stages of a job in their order; finished ones are recorded in a file and not repeated."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..documents import encode_json, read_json
from ..errors import DataError
from ..files import write_atomic
from ..interruption import keeping
from .output import Output

PROBLEM = "problem"  # a number of this name tells that a stage failed: it is tried again

Done = tuple[str, str, dict[str, Any]]  # `made`, `figure` and `numbers` of a `Stage`


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        stage: Its name.
        made: The file that it wrote, or another result.
        figure: Its main figure, as text.
        seconds: Its duration.
        numbers: What later stages need of it, by name.
        key: Digest of its settings and of the stages before it that it depends on.
    """

    stage: str
    made: str
    figure: str
    seconds: float
    numbers: dict[str, Any]
    key: str = ""


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        do: Runs it.
        settings: All that its result depends on, besides the stages before it.
        after: Names of the stages that it depends on.
    """

    do: Callable[[], Done]
    settings: Any = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    """The content of the file."""

    stages: list[Stage] = field(default_factory=list)


def run_stages(
    file: Path, works: Mapping[str, Work], output: Output, *, replace: bool = False
) -> tuple[Stage, ...]:
    """Run the stages that are not finished.

    Args:
        file: Where finished stages are recorded; it may be missing.
        works: Stage -> what it does, in their order.
        output: Where progress and notes go.
        replace: Whether a stage that was finished with other settings is done again.

    Returns:
        The stages, in their order.

    Raises:
        DataError: The file is damaged, or, without `replace`, of a job with other settings.
        FrEdgeError: What a stage raises; the file keeps every finished stage.
    """
    recorded = _read(file)
    finished: dict[str, Stage] = {}
    keys: dict[str, str] = {}
    for name, work in works.items():
        before = [keys[other] for other in work.after]
        content = encode_json((__version__, name, work.settings, before), indent=0)
        keys[name] = hashlib.sha256(content).hexdigest()
        if name in recorded and recorded[name].key == keys[name]:
            ready = all(
                other in finished for other in work.after
            )  # else it was made of what failed
            if ready and PROBLEM not in recorded[name].numbers:
                finished[name] = recorded[name]
        elif name in recorded and not replace:
            raise DataError(
                f"{file.parent} holds a job with other settings, or of another version of fr-edge",
                f"remove {file.parent}, or choose another --out",
            )
    kept = f"stages are finished in {file.parent}"
    with keeping(lambda: f"{len(finished)} of {len(works)} {kept}"):
        for count, (name, work) in enumerate(works.items(), 1):
            if name in finished:
                continue
            output.note(f"[{count}/{len(works)}] {name}")
            start = time.monotonic()
            made, figure, numbers = work.do()
            seconds = time.monotonic() - start
            finished[name] = Stage(name, made, figure, seconds, numbers, keys[name])
            write_atomic(file, encode_json(_Record(list(finished.values()))))
    return tuple(finished[name] for name in works)


def _read(file: Path) -> dict[str, Stage]:
    if not file.exists():
        return {}
    try:
        record = read_json(file, _Record)
    except DataError as error:
        hint = f"remove {file.parent}, or choose another --out"
        raise DataError(error.message, hint) from error
    return {stage.stage: stage for stage in record.stages}
