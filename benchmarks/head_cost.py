"""The AdaDistill head at 85k, 360k and 2M classes, and training throughput, on an NVIDIA GPU.

    python benchmarks/head_cost.py [--json]

Prints "not measured", with the reason, where torch finds no GPU. `--device cpu` with small `--classes`
tries the program, not a GPU. Head: the best of some steps after the first, which compiles; memory is
the peak of a step beyond what was there before it (benchmarks/distill_head.py, which also has the
formulas written straightforwardly: "lean"). Throughput: whole training steps of a student (forward,
head, backward, optimizer) on random images that are in memory, teacher embeddings given; without
decoding, loading and the teacher.
"""

import argparse
import json
import time
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import torch
from distill_head import compare

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe, read_recipe
from fr_edge.distill.student import device_batch
from fr_edge.distill.train_step import start_training, train_step

SIZES = ((85_742, 512, True), (360_232, 512, True), (2_059_906, 512, False))
"""MS1MV2, Glint360K and WebFace42M: classes, batch, whether the lean side fits beside ours."""
WARM_UP = 3


def head_cost(classes: int, batch: int, lean: bool, device: str, repeats: int) -> dict[str, Any]:
    """The head's figures, or why there are none."""
    sides = ["ours", "lean"] if lean else ["ours"]
    try:
        return compare(classes, batch, repeats, sides, device)
    except (RuntimeError, ValueError) as error:  # a side that ran out of memory answers nothing
        return {"classes": classes, "batch": batch, "not_measured": str(error)[:200]}


def throughput(recipe: Recipe, classes: int, device: str, steps: int) -> dict[str, Any]:
    """Images per second of whole training steps."""
    dim = 512
    ranks = Ranks(device=torch.device(device))
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (recipe.batch, 112, 112, 3), np.uint8)
    teacher = draw.normal(size=(recipe.batch, dim)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    labels = draw.choice(classes, recipe.batch, replace=False).astype(np.int64)
    try:
        state = start_training(recipe, classes, dim, ranks)
        times = []
        for _ in range(WARM_UP + steps):
            start = time.perf_counter()
            batch = device_batch(pixels, labels, teacher, classes, ranks.device)
            float(train_step(state, batch, 1e-3)["loss"])  # waits for the step
            times.append(time.perf_counter() - start)
    except RuntimeError as error:
        return {"network": recipe.network, "classes": classes, "not_measured": str(error)[:200]}
    seconds = float(np.median(times[WARM_UP:]))
    return {
        "network": recipe.network,
        "classes": classes,
        "batch": recipe.batch,
        "precision": str(state.amp or "float32").removeprefix("torch."),
        "compiled": recipe.compile,
        "step_ms": 1e3 * seconds,
        "images_per_s": recipe.batch / seconds,
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--classes", type=int, help="one size instead of the three")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--network", default="mobilefacenet")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    document: dict[str, Any] = {"date": date.today().isoformat(), "torch": torch.__version__}
    if args.device == "cuda" and not torch.cuda.is_available():
        reason = f"torch {torch.__version__} finds no NVIDIA GPU"
        document |= {"device": "", "not_measured": reason}
        print(json.dumps(document) if args.json else f"not measured: {reason}")
        return
    document["device"] = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    sizes = SIZES if args.classes is None else ((args.classes, args.batch, True),)
    document["head"] = [head_cost(*size, args.device, args.repeats) for size in sizes]
    base = replace(read_recipe("adadistill"), batch=args.batch, network=args.network, amp="auto")
    compiled = (False, True) if args.device == "cuda" else (False,)
    document["training"] = [
        throughput(replace(base, compile=flag), classes, args.device, args.repeats)
        for classes, _, _ in sizes
        for flag in compiled
    ]
    print(json.dumps(document) if args.json else as_text(document))


def as_text(document: dict[str, Any]) -> str:
    lines = [f"{document['date']}, {document['device']}, torch {document['torch']}", "", "head"]
    for row in document["head"]:
        lines.append(f"  {row['classes']:>9,} classes, batch {row['batch']}")
        if "not_measured" in row:
            lines.append(f"    not measured: {row['not_measured']}")
            continue
        for side in ("ours", "lean"):
            if side in row:
                cost = row[side]
                text = (
                    f"    {side}: {1e3 * cost['seconds']:.2f} ms, {cost['beyond_mb']:.0f} MB beyond"
                )
                if side == "lean":
                    text += f", gradient differs by {cost['gradient_error']:.1e}"
                lines.append(text)
    lines += ["", "training"]
    for row in document["training"]:
        label = f"  {row['network']}, {row['classes']:>9,} classes"
        if "not_measured" in row:
            lines.append(f"{label}: not measured: {row['not_measured']}")
            continue
        lines.append(
            f"{label}, batch {row['batch']}, {row['precision']}"
            f"{', compiled' if row['compiled'] else ''}: {row['step_ms']:.1f} ms a step,"
            f" {row['images_per_s']:.0f} images/s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
