"""Do two benchmarks of the same engine agree within the intervals that they state?

Pairs of short runs of one engine, one after the other, on the machine as it is: how many times do
the 95 % intervals of each percentile meet, where both runs state one, and how wide are they?
`python benchmarks/timing_repeat.py BUNDLE [--pairs 20] [--seconds 1] [--threads N] [--json]`
"""

import argparse
import json

import numpy as np

from fr_edge.bundle.bundle import open_bundle
from fr_edge.runtime.benchmark.setting import Setting
from fr_edge.runtime.benchmark.statistics import (
    latency_percentile,
    percentile_interval,
    percentile_name,
)
from fr_edge.runtime.benchmark.timing import time_runs
from fr_edge.runtime.benchmark.workload import EngineUnderTest

PERCENTILES = (50.0, 90.0, 99.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="fp32")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    subject = EngineUnderTest(
        open_bundle(args.bundle), args.engine, "onnxruntime", end_to_end=False
    )
    work = subject.workload(Setting(1, args.threads))
    runs = [
        time_runs(work.run, args.seconds, 100, warmup_s=1.0).latencies
        for _ in range(2 * args.pairs)
    ]
    document = {}
    for q in PERCENTILES:
        ends = [percentile_interval(one, q) for one in runs]
        middles = [latency_percentile(one, q) for one in runs]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            continue  # too few runs in the time: a slower engine wants more --seconds
        document[percentile_name(q)] = {
            "agree": sum(max(a[0], b[0]) <= min(a[1], b[1]) for a, b in known),
            "pairs": len(known),
            "median_ms": round(float(np.median(middles)), 4),
            "apart": round(
                float(
                    np.median(
                        [abs(a / b - 1) for a, b in zip(middles[::2], middles[1::2], strict=True)]
                    )
                ),
                4,
            ),
            "half_width": round(
                float(
                    np.median(
                        [
                            (pair[1] - pair[0]) / 2 / m
                            for pair, m in zip(ends, middles, strict=True)
                            if pair is not None
                        ]
                    )
                ),
                4,
            ),
        }
    if args.json:
        print(json.dumps(document, indent=1))
        return
    for percent, row in document.items():
        print(
            f"{percent}: {row['agree']} of {row['pairs']} pairs agree; median {row['median_ms']} ms,"
            f" typically {row['apart']:.1%} apart, intervals of +- {row['half_width']:.1%}"
        )


if __name__ == "__main__":
    main()
