"""docs/benchmark.schema.json says what `benchmark` writes, neither more nor less."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr_edge.documents import to_builtins
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.benchmark.breakdown import make_breakdown
from fr_edge.runtime.benchmark.poisson_load import LoadResult
from fr_edge.runtime.benchmark.result import summarize_run
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import latencies_of
from fr_edge.runtime.benchmark.timing import Timing
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.machine.monitor import SensorTrace
from fr_edge.runtime.machine.sensors import Reading
from fr_edge.runtime.profile import DeviceTimes, LayerTime

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "benchmark.schema.json").read_text())
READING = Reading(
    power_mw={"VDD_IN": 5000.0},
    temperature_c={"gpu": 50.0},
    clock_mhz={"gpu": 1300.0},
    load_percent={"gpu": 90.0},
    memory_mb={"machine": 3000.0},
    fan={"rpm": 2000.0},
    throttled=("gpu",),
)


def _problems(document: Any) -> list[str]:
    checker = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in checker.iter_errors(json.loads(json.dumps(document)))]


@pytest.fixture(scope="module")
def document(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import shutil

    bundle = tmp_path_factory.mktemp("schema") / "mini.bundle"
    shutil.copytree(calibrated_mini, bundle)
    build_engine(bundle, "fp32", "onnxruntime")
    options: dict[str, Any] = {"batches": (1, 2), "streams": (1, 2), "layers": True}
    return to_builtins(benchmark(bundle, "fp32", duration_s=0.2, warmup_s=0.1, **options))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_real_document(document: dict[str, Any]) -> None:
    assert _problems(document) == []
    assert len(document["runs"]) == 4
    assert document["runs"][0]["layers"]


def test_queries_at_random(document: dict[str, Any]) -> None:
    load = LoadResult(50.0, 49.8, 0.2, 1, 0.01, latencies_of(np.full(200, 4.0)))
    timing = Timing(latencies_of(np.full(200, 5.0)), 0.1, True, None, load=load)
    run = to_builtins(summarize_run(Setting(rate=50), timing, 2.0, 1.0))
    assert _problems({**document, "runs": [run]}) == []
    assert run["load"]["most_per_s"] == 250


def test_a_board_with_every_sensor(document: dict[str, Any]) -> None:
    timing = Timing(latencies_of(np.full(200, 5.0)), 0.1, True, None)
    trace = SensorTrace([0.0, 1.0], [READING, READING], {"gpu": 1}, ("15W", "15W"), 0.0)
    parts = make_breakdown(1.0, 1.0, 5.0, DeviceTimes(1, 1, 2, 1, True), (LayerTime("a", "", 1.0),))
    run = summarize_run(Setting(4, None, 2), timing, 10.0, 1.0, trace, trace, ("x",))
    run = replace(run, **vars(parts))
    held = {"gpu": {"governor": None, "min_mhz": 1.0, "max_mhz": 1.0, "held": True}}
    device = {**document["device"], "clocks": held}
    assert _problems({**document, "runs": [to_builtins(run)], "device": device}) == []
    few = summarize_run(Setting(4), replace(timing, latencies=latencies_of([5.0, 6.0])), 10.0, 1.0)
    assert _problems({**document, "runs": [to_builtins(few)]}) == []


def test_what_is_missing_or_new_is_found(document: dict[str, Any]) -> None:
    for key in ("verdict", "runs", "device"):
        assert _problems({k: v for k, v in document.items() if k != key})
    assert _problems({**document, "new": 1})
    assert _problems({**document, "runs": [{**document["runs"][0], "verdict": "MAYBE"}]})
    assert _problems({**document, "runs": []})
