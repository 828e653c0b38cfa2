"""How long a search in a gallery takes, by NumPy in blocks and by faiss's exact index, in one run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/gallery_search.py [--rows 10000,100000]

Both compare every probe with every row. The two take turns, and the shortest time of each counts.
faiss-cpu is not a dependency; without it NumPy is measured alone.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

from fr_edge.metrics.identification import nearest

try:
    import faiss
except ImportError:
    faiss = None

_TURNS = 5
_CHUNK = 100_000  # rows drawn at once


def unit_rows(count: int, dim: int) -> np.ndarray:
    random, rows = np.random.default_rng(0), np.empty((count, dim), np.float32)
    for start in range(0, count, _CHUNK):
        part = random.standard_normal((min(_CHUNK, count - start), dim), np.float32)
        rows[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def shortest_ms(searches: list[Callable[[], object]]) -> list[float]:
    times: list[list[float]] = [[] for _ in searches]
    for _ in range(_TURNS):
        for search, taken in zip(searches, times, strict=True):
            start = time.perf_counter()
            search()
            taken.append(1000 * (time.perf_counter() - start))
    return [min(taken) for taken in times]


def measure(rows: np.ndarray, index: object, probes: int, count: int) -> str:
    random = np.random.default_rng(1)
    picked = random.choice(len(rows), probes, replace=False)
    noise = random.standard_normal((probes, rows.shape[1]), np.float32) / rows.shape[1] ** 0.5
    some = rows[picked] + noise
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    searches: list[Callable[[], object]] = [lambda: nearest(some, rows, count)]
    line = f"{len(rows):>9,} {rows.shape[1]:>4} {probes:>6} {count:>4}"
    if index is not None:
        searches.append(lambda: index.search(some, count))  # type: ignore[attr-defined]
        same = (nearest(some, rows, count)[1] == index.search(some, count)[1]).mean()  # type: ignore[attr-defined]
        own, other = shortest_ms(searches)
        return f"{line} {own:>9.1f} {other:>9.1f} {own / other:>6.2f} {same:>7.1%}"
    return f"{line} {shortest_ms(searches)[0]:>9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--probes", default="1,32")
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    threads = {
        name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    print(
        f"numpy {np.__version__}, faiss {faiss.__version__ if faiss else 'not installed'}, {threads}"
    )
    print("     rows  dim probes rank  numpy ms  faiss ms  ratio  same rows")
    for count in map(int, options.rows.split(",")):
        rows = unit_rows(count, options.dim)
        index = None
        if faiss is not None:
            index = faiss.IndexFlatIP(options.dim)
            index.add(rows)
        for probes in map(int, options.probes.split(",")):
            for rank in (1, 10):
                print(measure(rows, index, probes, rank), flush=True)


if __name__ == "__main__":
    main()
