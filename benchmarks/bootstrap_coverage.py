"""Does the 95 % interval of a TAR change hold the true change 95 times in 100?

Embeddings are drawn: people differ in how alike their faces are, so faces of one person are no
independent witnesses, and the second network is the first with noise. The true change comes from a
much larger draw. `python benchmarks/bootstrap_coverage.py [TRIALS]`
"""

import sys

import numpy as np

from fr_edge.metrics.intervals import tar_intervals
from fr_edge.metrics.verification import all_pairs, tar_at_far

DIM = 64


def draw(people: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings by both networks `(N, 64) float32` each, and labels `(N,)`."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), images)
    spread = random.gamma(6.0, 0.15, people)[labels, None]
    old = random.normal(size=(people, DIM))[labels] + spread * random.normal(
        size=(len(labels), DIM)
    )
    new = old + 0.25 * random.normal(size=old.shape)
    return old.astype(np.float32), new.astype(np.float32), labels


def main(trials: int) -> None:
    fars = (1e-2, 1e-3)
    old, new, labels = draw(4000, 5, seed=0)
    before, after = all_pairs(old, labels), all_pairs(new, labels)
    truth = {far: _change(before, after, far) for far in fars}
    for people in (60, 200):
        hits, widths = dict.fromkeys(fars, 0), {far: [] for far in fars}
        for trial in range(trials):
            old, new, labels = draw(people, 5, seed=1 + trial)
            scores = all_pairs(old, labels), all_pairs(new, labels)
            found = tar_intervals(old, new, labels, scores, fars, replicates=300, seed=trial)
            for far in fars:
                low, high = found[far].delta
                hits[far] += low <= truth[far] <= high
                widths[far].append(high - low)
        for far in fars:
            print(
                f"{people} people, FAR {far:g}: true change {100 * truth[far]:+.2f} points, "
                f"inside {100 * hits[far] / trials:.1f} % of {trials} intervals, "
                f"mean width {100 * np.mean(widths[far]):.2f} points"
            )


def _change(before: object, after: object, far: float) -> float:
    old, new = tar_at_far(before, far), tar_at_far(after, far)  # type: ignore[arg-type]
    assert old is not None
    assert new is not None
    return new - old


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
