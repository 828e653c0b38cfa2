"""Do others measure the same, and what does measuring cost?

One ONNX file, one thread, batch 1, in one process: `time_runs` around our session, a bare loop
around onnxruntime's own (as onnxruntime_perf_test runs it), and polygraphy's OnnxrtRunner, whose
`last_inference_time` is its own figure. They take turns, so that all see the same machine; ratios
are medians over the rounds. Then `time_runs` against a loop without a clock, on about 1 ms of work.
`python benchmarks/timing_peers.py BUNDLE [--rounds N] [--json]`; polygraphy is left out where it is
not installed (pip install polygraphy).
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.golden import read_golden
from fr_edge.faces.contract import preprocess
from fr_edge.graph.cpu_int8 import cpu_model
from fr_edge.runtime.benchmark.timing import time_runs
from fr_edge.runtime.benchmark.workload import Workload, ready_batches, turns
from fr_edge.runtime.onnxruntime_session import make_cpu_session
from fr_edge.runtime.session import open_session

SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    inputs = preprocess(read_golden(bundle).faces, bundle.spec)
    session = open_session(bundle, "fp32", "onnxruntime", artifact="graph", threads=1)
    expected = session.embed_tensor(inputs)
    work = Workload(
        [session.embed_tensor],
        ready_batches(inputs, 1),
        [expected[p] for p in turns(len(inputs), 1)],
    )
    data = cpu_flavour_of(bundle.file("model.onnx"))
    plain = make_cpu_session(data, "the plain model", threads=1)
    name = plain.get_inputs()[0].name
    feeds = [{name: np.ascontiguousarray(inputs[pick])} for pick in turns(len(inputs), 1)]

    def ours() -> float:
        timed = time_runs(
            work.run, SECONDS, warmup_s=0.1, between=lambda index, _: work.check(index)
        )
        return timed.latencies.percentile(50)

    def perf_test() -> float:
        return loop(lambda turn: plain.run(None, feeds[turn % len(feeds)]))

    sides: dict[str, Callable[[], float]] = {"fr-edge": ours, "onnxruntime, bare loop": perf_test}
    runner = polygraphy_runner(plain)
    if runner is not None:
        sides["polygraphy OnnxrtRunner"] = lambda: polygraphys(runner, feeds)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(args.rounds):
        order = list(sides)[:: 1 if turn % 2 else -1]
        for side in order:
            found[side].append(sides[side]())
    base = np.array(found["onnxruntime, bare loop"])
    document = {
        side: {
            "p50_ms": round(float(np.median(ms)), 4),
            "ratio": round(float(np.median(np.array(ms) / base)), 4),
        }
        for side, ms in found.items()
    }
    if runner is not None:
        runner.deactivate()
    document["overhead at 1 ms"] = overhead(args.rounds)
    if args.json:
        print(json.dumps(document, indent=1))
        return
    for side, row in document.items():
        print(f"{side}: {', '.join(f'{key} {value}' for key, value in row.items())}")


def loop(run: Callable[[int], object]) -> float:
    """Median milliseconds, a clock around each run and nothing between."""
    times: list[int] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        run(len(times))
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


def polygraphys(runner, feeds) -> float:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        runner.infer(feeds[len(times) % len(feeds)])
        times.append(runner.last_inference_time())
    return float(np.median(times)) * 1e3


def polygraphy_runner(session):
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner
    except ImportError:
        return None
    runner = OnnxrtRunner(session)
    runner.activate()
    return runner


def cpu_flavour_of(path) -> bytes:
    import onnx

    return cpu_model(onnx.load(path)).SerializeToString()


def overhead(rounds: int) -> dict[str, float]:
    """What `time_runs` says of a millisecond's work, and spends on it, over a clockless loop."""
    matrix = np.random.default_rng(0).standard_normal((340, 340), np.float32)

    def work(_: int) -> None:
        for _ in range(24):
            np.tanh(matrix)

    said, spent, bare = [], [], []
    for _ in range(rounds):
        timed = time_runs(work, SECONDS, warmup_s=0.1)
        said.append(timed.latencies.mean_ms)
        spent.append(SECONDS * 1e3 / timed.latencies.count)
        count = timed.latencies.count
        begin = time.perf_counter()
        for _ in range(count):
            work(0)
        bare.append((time.perf_counter() - begin) / count * 1e3)
    return {
        "bare_ms": round(float(np.median(bare)), 4),
        "said_ratio": round(float(np.median(np.array(said) / bare)), 4),
        "spent_ratio": round(float(np.median(np.array(spent) / bare)), 4),
    }


if __name__ == "__main__":
    main()
