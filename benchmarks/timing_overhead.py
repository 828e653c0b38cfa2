"""What does measuring cost, and do two measurements agree?

Work of about a millisecond is timed by `time_runs` with all that `benchmark` does between runs, and
by a bare loop, in turn, so that both see the same machine. Then the same benchmark is run twice,
20 times over: how often do the intervals of the medians meet?
`python benchmarks/timing_overhead.py`
"""

import time
from collections.abc import Callable

import numpy as np

from fr_edge.metrics.verification import cosines
from fr_edge.runtime.benchmark.statistics import percentile_interval
from fr_edge.runtime.benchmark.timing import time_runs

ROUNDS = 20


def main() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((340, 340), np.float32)
    embeddings = random.standard_normal((1, 128), np.float32)

    def work(_: int) -> None:
        for _ in range(24):
            np.tanh(matrix)

    def between(index: int, ns: int) -> None:
        if index % 16 == 0:
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
