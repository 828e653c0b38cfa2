"""Training with the teacher's embeddings cached, against an IResNet-50 on every image.

    python benchmarks/distill_cache.py [--batch 32] [--steps 2] [--epochs 26] [--amp auto] [--json]

Both sides are the trainer's own step (MobileFaceNet, AdaDistill) in one process, taking turns; the
weights are random, which changes no time. `amp` is the student's precision as in a recipe, the
teacher computes in float32. `ratio` is images per second once the cache is filled,
`ratio_with_filling` counts its filling, two embeddings an image, over that many epochs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fr_edge.distill.dataset import Pixels, batches, split_identities
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student import device_batch
from fr_edge.distill.teacher import open_teacher
from fr_edge.distill.teacher_cache import cached_embeddings
from fr_edge.distill.teacher_targets import TeacherEmbeddings
from fr_edge.distill.train_step import reuse_freed_memory, start_training, train_step
from fr_edge.distill.weights import save_network
from fr_edge.faces.sources import open_faces


def measure(batch: int, steps: int, epochs: int, amp: str) -> dict[str, float | str | int]:
    faces = open_faces(f"synthetic:{batch}x1")
    parts = split_identities(faces, 0)
    pixels = Pixels(faces, parts.train, 1024)
    recipe = Recipe(batch=batch, amp=amp)
    run = start_training(recipe, parts.classes, 512, Ranks())
    seconds: dict[str, list[float]] = {"cached": [], "streamed": []}
    with tempfile.TemporaryDirectory() as folder, reuse_freed_memory():
        path = Path(folder) / "teacher.pt"
        save_network(path, build_network("iresnet50").state_dict(), "iresnet50", 512)
        teacher = open_teacher(path)
        teacher.embed(pixels.read_all(range(batch)).pixels)  # warm
        started = time.perf_counter()
        values = cached_embeddings(Path(folder), teacher, pixels)
        filling = (time.perf_counter() - started) / batch
        cached = TeacherEmbeddings(teacher, values)
        sources = {"cached": cached.of_batch, "streamed": lambda item: teacher.embed(item.pixels)}
        for item in batches(pixels, parts, recipe, Ranks(), 0, steps):
            for name, targets in sources.items():
                started = time.perf_counter()
                labels = parts.labels[item.index]
                given = (item.pixels, labels, targets(item), parts.classes, run.ranks.device)
                train_step(run, device_batch(*given), 0.01)
                seconds[name].append((time.perf_counter() - started) / batch)
    once, streamed = (float(np.min(seconds[name])) for name in ("cached", "streamed"))
    return {
        "batch": batch,
        "student_precision": str(run.amp or torch.float32).removeprefix("torch."),
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cached_images_per_s": 1 / once,
        "streamed_images_per_s": 1 / streamed,
        "filling_s_per_image": filling,
        "ratio": streamed / once,
        "ratio_with_filling": streamed / (once + filling / epochs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.batch, args.steps, args.epochs, args.amp)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
