"""What does it cost to keep every latency of a long benchmark?

As many noisy latencies as an hour at half a millisecond gives, into the recorder that `benchmark`
uses: the memory of the process before and after, CPU time per run added, and the time that the
percentiles and their intervals take.

    python benchmarks/timing_soak.py [--runs 7200000] [--json]
"""

import argparse
import json
import resource
import time

import numpy as np

from fr_edge.runtime.benchmark.statistics import LatencyRecorder, percentile_interval

CHUNK = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7_200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    recorder = LatencyRecorder()
    before, seconds = peak_mb(), 0.0
    for _ in range(0, args.runs, CHUNK):
        values = (5e5 * np.exp(random.normal(size=CHUNK) * 0.1)).astype(np.int64).tolist()
        begin = time.process_time()
        for value in values:
            recorder.add(value)
        seconds += time.process_time() - begin
    recorded = peak_mb()
    begin = time.process_time()
    latencies = recorder.latencies()
    ends = {f"p{q:g}_ms": percentile_interval(latencies, q) for q in (50.0, 99.0, 99.9)}
    document = {
        "runs": latencies.count,
        "recorded_mb": round(recorded - before, 1),
        "with_percentiles_mb": round(peak_mb() - before, 1),
        "us_per_run": round(seconds / args.runs * 1e6, 3),
        "percentiles_s": round(time.process_time() - begin, 2),
        **ends,
    }
    if args.json:
        print(json.dumps(document, indent=1))
        return
    for name, value in document.items():
        print(f"{name}: {value}")


def peak_mb() -> float:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
