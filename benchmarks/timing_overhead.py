"""What does measuring cost, and do two measurements agree?

Work of about a millisecond is timed by `time_runs` with all that `benchmark` does between runs, and
by a bare loop, in turn, so that both see the same machine. Then the same benchmark is run twice,
20 times over: how often do the intervals of the medians meet?
`python benchmarks/timing_overhead.py`
"""

import time

import numpy as np

from fr_edge.runtime.latency import percentile_interval
from fr_edge.runtime.metrics import cosines
from fr_edge.runtime.timing import time_runs

ROUNDS = 20


def main() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((340, 340), np.float32)
    embeddings = random.standard_normal((1, 128), np.float32)

    def work(_: int) -> None:
        for _ in range(4):
            np.tanh(matrix)

    def between(index: int) -> None:
        if index % 16 == 0:
            cosines(embeddings, embeddings)

    ours, bare = [], []
    for _ in range(ROUNDS):
        ours.append(np.median(time_runs(work, 0.5, warmup_s=0.1, between=between).latencies_ms))
        bare.append(_bare_loop(work, 0.5))
    ratio = np.array(ours) / np.array(bare)
    print(
        f"median of a run: bare loop {np.median(bare):.3f} ms, time_runs {np.median(ours):.3f} ms; "
        f"ratio {np.median(ratio):.4f} (middle half {np.percentile(ratio, 25):.4f} to "
        f"{np.percentile(ratio, 75):.4f})"
    )
    agree = 0
    for _ in range(ROUNDS):
        ends = [
            percentile_interval(time_runs(work, 1.0, warmup_s=0.5).latencies_ms, 50)
            for _ in range(2)
        ]
        one, other = ends
        assert one is not None
        assert other is not None
        agree += max(one[0], other[0]) <= min(one[1], other[1])
    print(f"medians of two runs agree within their intervals {agree} times in {ROUNDS}")


def _bare_loop(work, seconds: float) -> float:
    """The whole loop's time over its count's median-sized slices: no clock inside a slice."""
    slices = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(10):
            work(0)
        slices.append((time.perf_counter() - start) / 10 * 1e3)
    return float(np.median(slices))


if __name__ == "__main__":
    main()
