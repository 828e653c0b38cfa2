"""What does measuring cost, does comparing every batch move it, and do two measurements agree?

With BUNDLE, its engine is timed, and a die decides after each run whether its embeddings are
compared: does the next run take longer then? Without, work of about a millisecond is timed by
`time_runs` with all that `benchmark` does between runs, and by a bare loop, in turn; then the same
benchmark is run twice, 20 times over: how often do the intervals of the medians meet?
`python benchmarks/timing_overhead.py [BUNDLE] [--engine fp32] [--seconds 20] [--threads 1]`
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from fr_edge.bundle.bundle import open_bundle
from fr_edge.metrics.verification import cosines
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import percentile_interval
from fr_edge.runtime.benchmark.timing import time_runs
from fr_edge.runtime.benchmark.workload import EngineUnderTest

ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--engine", default="fp32")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.bundle:
        compare_checks(args.bundle, args.engine, args.seconds, args.threads)
    else:
        compare_loops()


def compare_checks(bundle: str, engine: str, seconds: float, threads: int) -> None:
    """Latency of runs that follow a check over that of runs that follow none, by the toss of a die.

    Time is CPU time of the thread that runs the engine, so that other programs do not count; the
    caches that a check may have cooled do. "nearly" is the check at its dearest: embeddings that
    differ in their last digits. The medians' errors are from a bootstrap over the runs.
    """
    subject = EngineUnderTest(open_bundle(bundle), engine, "onnxruntime", end_to_end=False)
    for batch in (1, 8):
        work, near = (subject.workload(Setting(batch, threads)) for _ in range(2))
        near._expected = [rows * np.float32(1 + 1e-6) for rows in near._expected]
        random = np.random.default_rng(0)
        kinds = ("no check", "check, equal", "check, nearly")
        rows: dict[str, list[int]] = {kind: [] for kind in kinds}
        last = kinds[0]

        def between(index: int, ns: int) -> None:
            nonlocal last
            rows[last].append(ns)  # noqa: B023
            last = kinds[random.integers(3)]  # noqa: B023
            if last == "check, equal":
                work.check(index)  # noqa: B023
            elif last == "check, nearly":
                near._last = work._last  # noqa: B023
                near.check(index)  # noqa: B023

        time_runs(work.run, seconds, 100, clock=time.thread_time_ns, between=between)
        base = np.array(rows[kinds[0]])
        for kind in kinds:
            values = np.array(rows[kind])
            ratios = [
                np.median(random.choice(values, len(values)))
                / np.median(random.choice(base, len(base)))
                for _ in range(200)
            ]
            p90 = np.percentile(values, 90) / np.percentile(base, 90)
            print(
                f"batch {batch}, after {kind}: {len(values)} runs, p50 {np.median(values) / 1e6:.4f}"
                f" ms, ratio {np.median(values) / np.median(base):.4f} +- {np.std(ratios):.4f},"
                f" p90 ratio {p90:.4f}",
                flush=True,
            )


def compare_loops() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((340, 340), np.float32)
    embeddings = random.standard_normal((1, 128), np.float32)

    def work(_: int) -> None:
        for _ in range(24):
            np.tanh(matrix)

    def between(index: int, ns: int) -> None:
        cosines(embeddings, embeddings)

    said, looped, bare = [], [], []
    for _ in range(ROUNDS):
        timed = time_runs(work, 0.5, warmup_s=0.1, between=between)
        said.append(timed.latencies.mean_ms)
        looped.append(500 / timed.latencies.count)
        bare.append(_bare_loop(work, 0.5))
    for what, found in (("says a run takes", said), ("spends on a run", looped)):
        ratio = np.array(found) / np.array(bare)
        print(
            f"time_runs {what} {np.median(found):.3f} ms, a bare loop {np.median(bare):.3f} ms; "
            f"ratio {np.median(ratio):.4f}, middle half {np.percentile(ratio, 25):.4f} to "
            f"{np.percentile(ratio, 75):.4f}"
        )
    agree = 0
    for _ in range(ROUNDS):
        ends = [
            percentile_interval(time_runs(work, 1.0, warmup_s=0.5).latencies, 50) for _ in range(2)
        ]
        one, other = ends
        assert one is not None
        assert other is not None
        agree += max(one[0], other[0]) <= min(one[1], other[1])
    print(f"medians of two runs agree within their intervals {agree} times in {ROUNDS}")


def _bare_loop(work: Callable[[int], None], seconds: float) -> float:
    """Milliseconds a run takes with no clock between runs, about `seconds` of them."""
    begin = time.perf_counter()
    work(0)
    count = max(1, round(seconds / (time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(count):
        work(0)
    return (time.perf_counter() - begin) / count * 1e3


if __name__ == "__main__":
    main()
