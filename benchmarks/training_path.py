"""The path around the training step: what a step costs besides its network, input, and large data.

    python benchmarks/training_path.py [--parts step,input,workers,scale] [--json]

step: CPU seconds of whole training steps of the trainer (batch from memory, copy, forward, loss, backward,
clipping, optimizer, log), and of forward, loss and backward inside them; full-width MobileFaceNet, 128
images, 1,000 classes, float32. `overhead` is the rest's share of a step, the median; `--repeats 5` takes
about 45 CPU seconds.

input: images a second that one process puts into batches of 512: from memory, and from JPEG files; those
of `--faces SRC`, or drawn ones.

workers: how long the training thread takes a batch of 128 that two workers have ready, with a copy of its
pixels, in turns: from the trainer's workers, and from torch's DataLoader as arrays and as tensors.

scale: a RecordIO index of 5,822,653 images of 85,742 people is opened and an epoch's order drawn, in a
process of its own; the records hold no images. Memory is that process's peak beyond what its imports
take, and what a worker that is forked from it holds for itself after it drew two epochs' orders.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fr_edge.distill.dataset import (
    Batch,
    IdentitySplit,
    Pixels,
    _Steps,
    batches,
    split_identities,
)
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student import copied_ahead
from fr_edge.distill.teacher_targets import unit_rows
from fr_edge.distill.train_step import reuse_freed_memory, start_training, train_step
from fr_edge.faces.sources import Faces, open_faces

IMAGES, PEOPLE = 5_822_653, 85_742  # MS1MV2
CLASSES, BATCH, DIM = 1000, 128, 512
CPU = torch.device("cpu")


class Stopwatch:
    """CPU seconds inside some functions, measured where they are called."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - started

        return timed


def measure_step(repeats: int) -> dict[str, Any]:
    recipe = Recipe(batch=BATCH, amp="off", workers=0)
    faces = random_faces(2 * BATCH, CLASSES)
    split = replace(split_identities(faces, 0), classes=CLASSES)
    pixels = Pixels(faces, split.train, 1024)
    state = start_training(recipe, CLASSES, DIM, Ranks())
    draw = np.random.default_rng(0)
    cached = unit_rows(draw.normal(size=(len(faces), DIM)).astype(np.float32)).astype(np.float16)
    watch = Stopwatch()
    state.forward = watch.around(state.forward)
    state.loss.forward = watch.around(state.loss.forward)  # type: ignore[method-assign]
    backward = torch.Tensor.backward
    steps = []
    with reuse_freed_memory():
        torch.Tensor.backward = watch.around(backward)  # type: ignore[method-assign,assignment]
        images = batches(pixels, split, recipe, Ranks(), 0, repeats + 1)
        source = copied_ahead(images, split, lambda b: cached[b.index].astype(np.float32), CPU)
        started = time.process_time()
        for batch in source:
            means = train_step(state, batch, 0.01)
            state.curve.append({name: float(value) for name, value in means.items()})
            ended = time.process_time()
            steps.append((ended - started, watch.seconds))
            started, watch.seconds = time.process_time(), 0.0
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    # The first step also makes memory; in the last no batch is read. The least disturbed counts.
    whole, inside = min(steps[1:-1])
    shares = [1 - inner / outer for outer, inner in steps[1:-1]]
    return {
        "step_cpu_s": whole,
        "forward_backward_cpu_s": inside,
        "overhead": float(np.median(shares)),
        "overhead_max": max(shares),
    }


def measure_input(repeats: int, source: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        memory = random_faces(2048, 100)
        draw = np.random.default_rng(0)
        for number in range(2048):
            person = Path(folder) / f"{number % 100:03}"
            person.mkdir(exist_ok=True)
            small = Image.fromarray(draw.integers(0, 256, (14, 14, 3), np.uint8))
            small.resize((112, 112)).save(person / f"{number:05}.jpg", quality=95)
        for name, faces, mb in (
            ("memory", memory, 1024),
            ("jpeg", open_faces(source or folder), 0),
        ):
            recipe = Recipe(batch=512, memory_mb=mb)
            split = split_identities(faces, 0)
            pixels = Pixels(faces, split.train, mb)
            # Decoded where it stays in memory, and read from the disk once.
            list(batches(pixels, split, recipe, Ranks(), 0, 4))
            started = time.process_time()
            for _ in batches(pixels, split, recipe, Ranks(), 0, 4 * repeats):
                pass
            result[f"{name}_images_per_cpu_s"] = 4 * repeats * 512 / (time.process_time() - started)
    return result


def measure_workers(repeats: int) -> dict[str, Any]:
    faces = random_faces(16 * BATCH, 100)
    split = split_identities(faces, 0)
    pixels = Pixels(faces, split.train, 1024)
    pixels.read_all(range(len(pixels)))
    recipe = Recipe(batch=BATCH, workers=2)
    options: dict[str, Any] = {"batch_size": None, "multiprocessing_context": "fork"}
    options |= {"sampler": range(16), "num_workers": 2}
    steps = _Steps(pixels, split, recipe, Ranks())
    ways: dict[str, Callable[[], Iterable[Batch]]] = {
        "trainer": lambda: batches(pixels, split, recipe, Ranks(), 0, 16),
        "arrays": lambda: DataLoader(steps, collate_fn=lambda batch: batch, **options),
        "tensors": lambda: DataLoader(
            steps, collate_fn=lambda b: replace(b, pixels=torch.from_numpy(b.pixels)), **options
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            source = iter(way())
            for number in range(16):
                time.sleep(0.05)
                started = time.perf_counter()
                np.asarray(next(source).pixels).copy()
                if number > 3:  # the workers have begun
                    seconds[name].append(time.perf_counter() - started)
            next(source, None)
    medians = {name: 1e3 * float(np.median(measured)) for name, measured in seconds.items()}
    ratios = {f"{n}_over_trainer": medians[n] / medians["trainer"] for n in ("arrays", "tensors")}
    return {f"{name}_ms": median for name, median in medians.items()} | ratios


def measure_scale() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder))
        done = subprocess.run(
            [sys.executable, __file__, "--open", folder], capture_output=True, text=True, check=True
        )
    opened: dict[str, Any] = json.loads(done.stdout)
    return opened


def open_large(folder: Path) -> dict[str, Any]:
    """In a process of its own: its peak of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    faces = open_faces(folder)
    opened = time.process_time()
    split: IdentitySplit = split_identities(faces, 0)
    recipe = Recipe(batch=512)
    pixels = Pixels(faces, split.train, recipe.memory_mb)
    divided = time.process_time()
    steps = _Steps(pixels, split, recipe, Ranks())
    reader, writer = os.pipe()
    if os.fork() == 0:
        mine = private_mb()
        steps.order(0), steps.order(1)
        os.write(writer, str(private_mb() - mine).encode())
        os._exit(0)
    worker_mb = float(os.read(reader, 99))
    begun = time.process_time()
    order = steps.order(0)
    drawn = time.process_time() - begun
    assert (len(order), split.classes, len(pixels)) == (IMAGES, PEOPLE, IMAGES)
    return {
        "images": len(faces),
        "people": split.classes,
        "open_cpu_s": opened - started,
        "split_cpu_s": divided - opened,
        "shuffle_cpu_s": drawn,
        "worker_mb": worker_mb,
        "peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def private_mb() -> float:
    """Memory that this process shares with no other."""
    (line,) = (
        line
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("Private_Dirty")
    )
    return int(line.split()[1]) / 1024


def random_faces(count: int, people: int) -> Faces:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), np.uint8)
    keys = [str(number) for number in range(count)]
    return Faces("memory", keys, np.arange(count) % people, lambda index: pixels[index])


def write_records(folder: Path) -> None:
    """RecordIO as InsightFace lays it, with 4 bytes in the place of each image."""
    head = np.dtype(
        [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2)]
    )
    image, ranged = (np.dtype([("head", head), ("rest", "<f4", n)]) for n in (1, 2))
    labels = np.sort(np.random.default_rng(0).integers(0, PEOPLE, IMAGES))
    labels[:PEOPLE] = np.arange(PEOPLE)
    labels.sort()
    starts = np.searchsorted(labels, np.arange(PEOPLE + 1)) + 1

    def records(kind: np.dtype[Any], count: int) -> Any:
        rows = np.zeros(count, kind)
        rows["head"]["magic"], rows["head"]["length"] = 0xCED7230A, kind.itemsize - 8
        return rows

    header, images, people = (records(ranged, 1), records(image, IMAGES), records(ranged, PEOPLE))
    header["head"]["flag"], header["rest"] = 2, (IMAGES + 1, IMAGES + 1 + PEOPLE)
    images["head"]["label"] = labels
    people["head"]["flag"], people["rest"] = 2, np.stack([starts[:-1], starts[1:]], 1)
    with (folder / "train.rec").open("wb") as stream:
        for rows in (header, images, people):
            stream.write(rows.tobytes())
    sizes = np.r_[
        ranged.itemsize, np.full(IMAGES, image.itemsize), np.full(PEOPLE, ranged.itemsize)
    ]
    offsets = np.r_[0, np.cumsum(sizes)[:-1]]
    with (folder / "train.idx").open("w") as text:
        text.writelines(f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="step,input,workers,scale")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--faces", default="", help="faces for the input part")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(open_large(args.open)))
        return
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for part in args.parts.split(","):
        if part == "scale":
            result |= measure_scale()
        elif part == "workers":
            result |= measure_workers(args.repeats)
        elif part == "input":
            result |= measure_input(args.repeats, args.faces)
        else:
            result |= measure_step(max(2, args.repeats))
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
