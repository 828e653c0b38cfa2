"""All pairs of many faces, and IJB-C's templates: counted by fr-edge, and sorted by scikit-learn.

Each side runs in a process of its own on the same drawn embeddings, so that peak memory is its own;
both run one after the other in the same minute, so that their ratio means something.

    pip install scikit-learn
    python benchmarks/verification_scale.py [FACES]        20,000 by default: 200 million pairs
    python benchmarks/verification_scale.py ijbc           469,375 images into 23,124 templates
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

FARS = (1e-3, 1e-4, 1e-5, 1e-6)
DIM = 128


def draw(faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Five faces each of `faces / 5` people: `(N, 128) float32` and labels."""
    random = np.random.default_rng(0)
    labels = np.arange(faces) // 5
    people = random.standard_normal((faces // 5 + 1, DIM), np.float32)
    return people[labels] + 0.9 * random.standard_normal((faces, DIM), np.float32), labels


def ours(faces: int) -> list[float | None]:
    from fr_edge.metrics.verification import all_pairs, tar_at_far

    scores = all_pairs(*draw(faces))
    return [tar_at_far(scores, far) for far in FARS]


def sklearn(faces: int) -> list[float | None]:
    """What evaluation scripts do: all scores in one array, `roc_curve`, interpolate."""
    from sklearn.metrics import roc_curve

    embeddings, labels = draw(faces)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(faces, 1)
    scores = np.concatenate([(unit[i] @ unit[i + 1 :].T) for i in range(faces - 1)])
    far, tar, _ = roc_curve(labels[first] == labels[second], scores)
    return [float(tar[np.searchsorted(far, wanted, side="right") - 1]) for wanted in FARS]


def ijbc(_: int) -> list[float | None]:
    """Drawn embeddings of 512 numbers in IJB-C's shape, pooled and compared, streaming."""
    from fr_edge.faces.ijb import Ijb, pool_templates, template_cosines
    from fr_edge.faces.sources import Faces
    from fr_edge.metrics.accuracy import nearest_tar

    images, templates, pairs, genuine = 469_375, 23_124, 15_658_489, 19_557
    random = np.random.default_rng(0)
    template = np.sort(random.integers(0, templates, images))
    template[:templates] = np.arange(templates)
    template.sort()
    media = np.arange(images) // 4
    first = random.integers(0, templates, pairs)
    second = random.integers(0, templates, pairs)
    second[:genuine] = first[:genuine] // 2 * 2 + 1 - first[:genuine] % 2  # its partner
    same = first // 2 == second // 2
    faces = Faces("drawn", (), template, lambda _: np.zeros((112, 112, 3), np.uint8))
    ijb = Ijb(faces, template, media, random.random(images, np.float32) + 0.5, first, second, same)
    people = random.standard_normal((templates // 2 + 1, 512), np.float32)

    def batches():
        for start in range(0, images, 1024):
            person = template[start : start + 1024] // 2
            noise = random.standard_normal((len(person), 512), np.float32)
            yield people[person] + 3 * noise

    pooled, numbers = pool_templates(batches(), ijb)
    return nearest_tar(template_cosines(pooled, numbers, ijb), same, FARS)


def measure(side: str, faces: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, str(faces)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    print(
        f"{side}: {found['seconds']:.1f} s, peak {found['peak_mb']:.0f} MB, TAR at {FARS}: "
        + ", ".join(f"{tar:.5f}" for tar in found["tar"]),  # type: ignore[attr-defined]
        flush=True,
    )
    return found


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, faces = sys.argv[2], int(sys.argv[3])
        begin = time.perf_counter()
        tar = {"fr-edge": ours, "scikit-learn": sklearn, "ijbc": ijbc}[side](faces)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak, "tar": tar}))
        return
    if sys.argv[1:] == ["ijbc"]:
        measure("ijbc", 0)
        return
    faces = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{faces:,} faces, {faces * (faces - 1) // 2:,} pairs")
    one, other = measure("fr-edge", faces), measure("scikit-learn", faces)
    for what in ("seconds", "peak_mb"):
        print(f"{what}: {other[what] / one[what]:.1f} times less")  # type: ignore[operator]


if __name__ == "__main__":
    main()
