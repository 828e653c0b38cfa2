"""Engines on the CPU: INT8 beside FP32, both beside plain onnxruntime on the same files, in turns.

    python benchmarks/cpu_engines.py BUNDLE [BUNDLE ...] [--cores N] [--json]

Builds the engines into the bundles. Milliseconds per face are those of the fastest run, for a
machine that is never quite idle, at batch 1 and 8. `embed` is a session's time over that of the
onnxruntime session inside it. `cosine` is the lowest between an engine and plain onnxruntime on the same file.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.golden import read_golden
from fr_edge.faces.contract import preprocess
from fr_edge.metrics.verification import cosines
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.fingerprint import SOURCES
from fr_edge.runtime.onnxruntime_session import CpuSession
from fr_edge.runtime.session import open_session

BATCHES, SECONDS, IN_A_ROW = (1, 8), 12.0, 4
PRECISIONS = ("fp32", "int8")
Run = Callable[[np.ndarray], np.ndarray]


def plain(path: Path, threads: int) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda faces: session.run(None, {name: faces})[0]


def inside(session: Any) -> Run:
    """What a CPU session calls, without the session: up to four faces a run."""
    assert isinstance(session, CpuSession)
    inner, name = session._session, session._input
    return lambda faces: [
        inner.run(None, {name: faces[i : i + 4]}) for i in range(0, len(faces), 4)
    ]


def fastest_ms(runs: dict[str, Run], faces: np.ndarray) -> dict[str, float]:
    """Per face; some runs in a row, since threads of whoever ran before spin on for a while."""
    best = dict.fromkeys(runs, np.inf)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for name, run in runs.items():
            for _ in range(IN_A_ROW):
                start = time.perf_counter()
                run(faces)
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / len(faces))
    return best


def overhead(session: Any, faces: np.ndarray) -> float:
    """A session's time over that of what it calls, one run of each in turn."""
    runs = (session.embed_tensor, inside(session))
    best = [np.inf, np.inf]
    end = time.perf_counter() + SECONDS / 4
    while time.perf_counter() < end:
        for side, run in enumerate(runs):
            start = time.perf_counter()
            run(faces)
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0] / best[1]


def compare(root: str, threads: int) -> dict[str, Any]:
    for precision in PRECISIONS:
        built = build_engine(root, precision, "onnxruntime")
    bundle = open_bundle(root)
    faces = preprocess(read_golden(bundle).faces, bundle.spec)
    faces = np.resize(faces, (max(BATCHES), *faces.shape[1:]))
    runs: dict[str, Run] = {}
    for p in PRECISIONS:
        session = open_session(bundle, p, "onnxruntime")
        runs[f"{p} plain"] = plain(bundle.file(SOURCES[p]), threads)
        runs[f"{p} engine"] = session.embed_tensor
    found: dict[str, Any] = {
        "bundle": bundle.root.stem,
        "int8_layers": built.layers["int8"],
        "integer_kernels": built.integer_kernels,
    }
    for p in PRECISIONS:
        near = cosines(runs[f"{p} plain"](faces), runs[f"{p} engine"](faces))
        found[f"{p}_cosine"] = round(float(near.min()), 5)
    for size in BATCHES:
        ms = fastest_ms(runs, faces[:size])
        found[f"batch_{size}"] = {
            "ms_per_face": {name: round(value, 3) for name, value in ms.items()},
            "fp32_over_int8": round(ms["fp32 engine"] / ms["int8 engine"], 3),
            "embed_over_inside": round(overhead(session, faces[:size]), 3),
        }
    return found


def row(found: dict[str, Any]) -> str:
    both = [found[f"batch_{size}"] for size in BATCHES]
    ms = [one["ms_per_face"] for one in both]
    cells = [found["bundle"]]
    names = ("fp32 plain", "int8 plain", "fp32 engine", "int8 engine")
    cells += [" / ".join(f"{one[name]:.2f}" for one in ms) for name in names]
    cells += [" / ".join(f"{one['fp32_over_int8']:.2f}" for one in both)]
    cells += [" / ".join(f"{one['embed_over_inside']:.3f}" for one in both)]
    cells += [f"{found['integer_kernels']} of {found['int8_layers']}"]
    return f"| {' | '.join([*cells, str(found['int8_cosine'])])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    # Before any session is made: as many threads as cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])
    every = [compare(root, given.cores) for root in given.bundles]
    if given.json:
        print(json.dumps({"cores": given.cores, "batches": BATCHES, "found": every}, indent=1))
        return
    print("| bundle | onnxruntime FP32, ms at 1 / 8 | INT8 | engine FP32 | engine INT8", end="")
    print(" | FP32 / INT8 | embed / inside | integer kernels | cosine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for found in every:
        print(row(found), flush=True)


if __name__ == "__main__":
    main()
