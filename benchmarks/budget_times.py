"""An accuracy budget by counted times beside one by measured times: does measuring pay on a CPU?

    python benchmarks/budget_times.py OTHERS BUNDLE... [--limit N] [--min-cosine X | --max-tar-drop X]

Both searches begin from the same hardened copy of the bundle (`int8_loss.py --hard`) and the same
faces. Then all-float, all-INT8 and what the two found run in turns, as the search times them
(`forced`: every INT8 layer that has an integer kernel gets it) and as `build-engine` ships them
(`built`: what its own race picks). Times are shares of all-float's, one face at a time: the median
of several races and their spread. Beware of a busy machine: pin it to a core (`taskset -c 1`).
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from int8_loss import FAR, harden

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.fitting import RANGES_ONLY
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.latency_model import counted_latency
from fr_edge.documents import to_builtins
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.runtime.cpu_kernel_selection import (
    TimedCall,
    build_cpu_engine,
    cpu_runner,
    interleaved_min_times,
)
from fr_edge.runtime.layer_latency import engine_builder, latency_here
from fr_edge.runtime.onnxruntime_session import ONNXRUNTIME, CpuSession

RACES, SECONDS = 5, 12.0


def search(bundle: Path, faces: Faces, limit: int, budget: Budget | None, how: str) -> Any:
    """The copy's `model.int8.onnx` becomes what was found; returns what the report says of it."""
    latency = (
        latency_here(open_bundle(bundle), ONNXRUNTIME) if how == "measured" else counted_latency
    )
    start = time.perf_counter()
    trials = calibrate(
        bundle, faces, "minmax", limit, steps=RANGES_ONLY, budget=budget, latency=latency
    ).report.trials
    taken = trials[-1]
    return {
        "seconds": time.perf_counter() - start,
        "trials": len(trials),
        "left_out": len(taken.float_layers),
        "float_layers": taken.float_layers,
        "int8_mac_share": taken.int8_mac_share,
        "searched_cost": taken.cost,
        "cosine": to_builtins(taken.loss.cosine),
        "rate": to_builtins(taken.loss.at(FAR)),  # None without a budget: few faces are judged
    }


def runs_of(bundle: Path, target: Path, side: str) -> tuple[dict[str, TimedCall], int]:
    """The INT8 model in the bundle, forced and built; how many integer kernels the latter has."""
    file = bundle / "model.int8.onnx"
    opened = open_bundle(bundle, check="manifest")
    make = engine_builder(opened, ONNXRUNTIME)
    integer = build_cpu_engine(file, target, "int8", opened.spec).integer_kernels
    return {
        f"{side}, forced": cpu_runner(make(onnx.load(file))),
        f"{side}, built": CpuSession(target, "int8", opened.spec, artifact="engine").embed_tensor,
    }, integer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("faces")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--min-cosine", type=float)
    parser.add_argument("--max-tar-drop", type=float)
    asked = parser.parse_args()
    faces = open_faces(asked.faces)
    budget = Budget(asked.max_tar_drop, asked.min_cosine, far=FAR)
    for original in asked.bundles:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy = folder / original.name
            shutil.copytree(original, copy)
            found: dict[str, Any] = {"bundle": original.name, "hard_tensor": harden(copy)}
            make = engine_builder(open_bundle(copy, check="manifest"), ONNXRUNTIME)
            runs: dict[str, TimedCall] = {"float": cpu_runner(make(onnx.load(copy / "model.onnx")))}
            for side, limits in (("all", None), ("counted", budget), ("measured", budget)):
                found[side] = search(copy, faces, asked.limit, limits, side)
                more, integer = runs_of(copy, folder / f"{side}.onnx", side)
                runs |= more
                found[side]["integer_kernels_built"] = integer
            spec = open_bundle(copy, check="manifest").spec
            face = np.random.default_rng(0).uniform(-1, 1, (1, *spec.shape)).astype(np.float32)
            races = [
                interleaved_min_times(list(runs.values()), face, SECONDS) for _ in range(RACES)
            ]
            found["float_ms"] = [round(1e3 * race[0], 2) for race in races]
            found["time"] = {
                run: {"median": statistics.median(shares), "spread": [min(shares), max(shares)]}
                for i, run in enumerate(runs)
                if i and (shares := [round(race[i] / race[0], 4) for race in races])
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
