"""Does a long benchmark's memory stay flat, and what does that cost?

As many latencies as an hour at half a millisecond gives, noisy, into the recorder that `benchmark`
uses, and kept whole: the bytes of the arrays, CPU time an added run, and the percentiles of both.

    python benchmarks/timing_soak.py [--runs 7200000] [--json]
"""

import argparse
import json
import time

import numpy as np

from fr_edge.runtime.benchmark.statistics import LatencyRecorder

CHUNK = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7_200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    recorder, plain = LatencyRecorder(), []
    document: dict[str, dict[str, float]] = {"memory_mb": {}}
    seconds = 0.0
    for done in range(0, args.runs, CHUNK):
        chunk = (5e5 * np.exp(random.normal(size=CHUNK) * 0.1)).astype(np.int64)
        values = chunk.tolist()
        plain.append(chunk)
        begin = time.process_time()
        for value in values:
            recorder.add(value)
        seconds += time.process_time() - begin
        if done + CHUNK in (CHUNK, args.runs // 2, args.runs):
            document["memory_mb"][f"after {done + CHUNK} runs"] = round(size_mb(recorder), 2)
    found, all_ms = recorder.latencies(), np.concatenate(plain) / 1e6
    for q in (50.0, 99.0, 99.9):
        ours, theirs = found.all.percentile(q), float(np.percentile(all_ms, q))
        document[f"p{q:g}_ms"] = {"kept": round(ours, 6), "of all runs": round(theirs, 6)}
    document["whole_mb"] = {"of all runs": round(all_ms.nbytes / 1e6, 1)}
    document["us_per_run"] = {"recorder": round(seconds / args.runs * 1e6, 2)}
    document["resolution"] = {"stated": found.resolution}
    if args.json:
        print(json.dumps(document, indent=1))
        return
    for what, row in document.items():
        print(f"{what}: {', '.join(f'{key} {value}' for key, value in row.items())}")


def size_mb(recorder: LatencyRecorder) -> float:
    """The arrays that a recorder holds."""
    stretches = recorder.latencies().stretches
    return sum(s.values_ms.nbytes + s.counts.nbytes for s in stretches) / 1e6


if __name__ == "__main__":
    main()
