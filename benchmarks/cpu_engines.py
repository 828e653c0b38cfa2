"""Engines on the CPU beside plain onnxruntime on the same files, in turns, one thread.

    python benchmarks/cpu_engines.py BUNDLE [BUNDLE ...]

Builds the engines into the bundles and prints Markdown rows: milliseconds per face (the
fastest run, for a machine that is never quite idle) at batch 1 and 8, and how far the embeddings of both are apart.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fr_edge.bundle import open_bundle
from fr_edge.faces.contract import preprocess
from fr_edge.runtime.accuracy.golden import read_golden
from fr_edge.runtime.accuracy.metrics import cosines
from fr_edge.runtime.engines.build import build_engine
from fr_edge.runtime.engines.fingerprint import SOURCES
from fr_edge.runtime.engines.session import open_session

ROUNDS = {1: 80, 8: 20}
Run = Callable[[np.ndarray], np.ndarray]


def plain(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda faces: session.run(None, {name: faces})[0]


def fastest_ms(runs: dict[str, Run], faces: np.ndarray, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(faces)
            times[name].append(1e3 * (time.perf_counter() - start) / len(faces))
    return {name: min(values) for name, values in times.items()}


def compare(root: str) -> None:
    bundle = open_bundle(root)
    files = {precision: name for precision, name in SOURCES.items() if name in bundle}
    built = {precision: build_engine(root, precision, "onnxruntime") for precision in files}
    bundle = open_bundle(root)
    theirs = {f"{p} theirs": plain(bundle.file(name)) for p, name in files.items()}
    ours = {f"{p} ours": open_session(bundle, p, "onnxruntime").embed for p in files}
    faces = preprocess(read_golden(bundle).faces, bundle.spec)
    found = {n: fastest_ms({**theirs, **ours}, faces[:n], rounds) for n, rounds in ROUNDS.items()}
    for p, name in files.items():
        old, new = ([found[n][f"{p} {who}"] for n in ROUNDS] for who in ("theirs", "ours"))
        near = cosines(theirs[f"{p} theirs"](faces), ours[f"{p} ours"](faces)).min()
        cells = [
            bundle.root.stem,
            name,
            f"{old[0]:.2f} / {old[1]:.2f}",
            f"{new[0]:.2f} / {new[1]:.2f}",
            f"{old[0] / new[0]:.2f} / {old[1] / new[1]:.2f}",
            f"{near:.5f}",
            f"{built[p].integer_kernels} of {built[p].layers['int8']}",
        ]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # no session was made yet: one thread
    print("| bundle | file | onnxruntime ms, batch 1 / 8 | engine ms | ratio | cosine | integer |")
    print("|---|---|---|---|---|---|---|")
    for argument in sys.argv[1:]:
        compare(argument)
