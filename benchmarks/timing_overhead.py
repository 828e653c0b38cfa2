"""What does measuring cost, does comparing every batch move it, and do two measurements agree?

With BUNDLE, its engine is timed with and without comparing the embeddings of every run, in turn, so
that both see the same machine. Without, work of about a millisecond is timed by `time_runs` with all
that `benchmark` does between runs, and by a bare loop, in turn; then the same benchmark is run twice,
20 times over: how often do the intervals of the medians meet?
`python benchmarks/timing_overhead.py [BUNDLE] [--engine fp32] [--rounds 40] [--threads 1]`
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
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.bundle:
        compare_checks(args.bundle, args.engine, args.rounds, args.threads)
    else:
        compare_loops()


def compare_checks(bundle: str, engine: str, rounds: int, threads: int) -> None:
    """Latency with a check after every run over latency without, of blocks that take turns.

    Time is CPU time of the thread that runs the engine, so that other programs do not count; the
    caches that a check may have cooled do. The check is also made to do its most: embeddings that
    differ in their last digits.
    """
    subject = EngineUnderTest(open_bundle(bundle), engine, "onnxruntime", end_to_end=False)
    for batch in (1, 8):
        equal = subject.workload(Setting(batch, threads))
        near = subject.workload(Setting(batch, threads))
        near._expected = [rows * np.float32(1 + 1e-6) for rows in near._expected]
        checks: dict[str, Callable[[int, int], None]] = {
            "no check": lambda index, ns: None,
            "check, equal": lambda index, ns, work=equal: work.check(index),  # type: ignore[misc]
            "check, nearly": lambda index, ns, work=near: work.check(index),  # type: ignore[misc]
        }
        found: dict[str, list[list[float]]] = {name: [] for name in checks}
        for turn in range(rounds):
            order = list(checks) if turn % 2 else list(checks)[::-1]
            for name in order:
                work = near if name == "check, nearly" else equal
                timed = time_runs(
                    work.run,
                    0.3,
                    100,
                    warmup_s=0.05,
                    clock=time.thread_time_ns,
                    between=checks[name],
                )
                found[name].append([timed.latencies.percentile(q) for q in (50, 90)])
        base = np.array(found["no check"])
        for name, rows in found.items():
            ratio = np.array(rows) / base
            p50, p90 = np.median(ratio, axis=0)
            quarters = np.percentile(ratio[:, 0], (25, 75))
            print(
                f"batch {batch}, {name}: p50 {np.median(np.array(rows)[:, 0]):.4f} ms, ratio"
                f" {p50:.4f} (middle half {quarters[0]:.4f} to {quarters[1]:.4f}), p90 ratio"
                f" {p90:.4f}",
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
