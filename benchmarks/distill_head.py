"""The AdaDistill head against its formulas written straightforwardly with autograd.

    python benchmarks/distill_head.py [--classes 85742] [--batch 128] [--device cuda] [--json]

Three sides in one process tree, stepping in turn on the same numbers:
  ours    fr_edge.distill.losses.adadistill.AdaDistill
  plain   the whole matrix normalised, compared, through arc cosine, margin and cross-entropy; the
          centres are a parameter in name, as in the authors' trainer, so autograd follows them too
  lean    the same with centres that autograd does not follow
Time is the best of the repeats, memory the peak of a step beyond what was there before it; on a
GPU the memory is the GPU's, and the first step, which compiles, is not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDES = ("ours", "plain", "lean")
DIM = 512


def inputs(centres: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Students halfway to their teachers, teachers near their centres: a run under way. Fills
    `centres (C, D)`; gives student, teacher, labels."""
    draw = torch.Generator().manual_seed(0)
    classes = len(centres)
    for start in range(0, classes, 1 << 16):
        block = torch.randn(min(1 << 16, classes - start), DIM, generator=draw)
        centres[start : start + len(block)] = functional.normalize(block) * 0.8
    labels = torch.randperm(classes, generator=draw)[:batch]
    near = functional.normalize(torch.randn(batch, DIM, generator=draw))
    teacher = functional.normalize(functional.normalize(centres[labels].cpu()) + near)
    away = functional.normalize(torch.randn(batch, DIM, generator=draw))
    return functional.normalize(teacher + away), teacher, labels


def straightforward(
    student: Tensor,
    teacher: Tensor,
    centres: Tensor,
    labels: Tensor,
    m: float = 0.45,
    s: float = 64.0,
) -> Tensor:
    """Section 3 of the paper, line by line; moves the centres, gives the loss."""
    e, t = functional.normalize(student), functional.normalize(teacher)
    with torch.no_grad():
        old = centres[labels]
        near = functional.cosine_similarity(old, t).clamp(1e-6, 1)
        alpha = ((e * t).sum(1).clamp(-1, 1) * near).clamp(1e-6, 1)[:, None]
        centres[labels] = alpha * old + (1 - alpha) * t
    cosine = (e @ functional.normalize(centres).T).clamp(-1, 1)
    angle = torch.acos(cosine)
    margin = torch.zeros_like(angle)
    margin[torch.arange(len(labels)), labels] = m
    return functional.cross_entropy(s * torch.cos(angle + margin), labels)


def side(name: str, classes: int, batch: int, grads: Path, device: str) -> None:
    """Steps when told to on stdin; answers with one JSON line each."""
    if name == "ours":
        from fr_edge.distill.losses.adadistill import AdaDistill

        head = AdaDistill(classes, DIM).to(device)
        centres = head.centres()
    else:
        centres = torch.empty(classes, DIM, device=device)
    student, teacher, labels = (x.to(device) for x in inputs(centres, batch))
    if name == "ours":
        head.update_lengths()
    initial = centres.clone() if classes < 1_000_000 else None
    weight = torch.nn.Parameter(centres, requires_grad=name == "plain")
    for _ in sys.stdin:
        if initial is not None:
            centres.copy_(initial)
            if name == "ours":
                head.update_lengths()
        x = student.clone().requires_grad_()
        before, peak = used_mb(device), peak_mb(device)
        reset_peak(device)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = (
            head(x, teacher, labels)
            if name == "ours"
            else straightforward(x, teacher, weight, labels)
        )
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        weight.grad = None
        assert x.grad is not None
        np.save(grads, x.grad.cpu().numpy())
        answer = {
            "seconds": wall,
            "cpu_seconds": cpu,
            "loss": float(loss.detach()),
            "beyond_mb": peak_mb(device) - before,
            "peak_mb": max(peak, peak_mb(device)),
        }
        print(json.dumps(answer), flush=True)


def memory_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def used_mb(device: str) -> float:
    return torch.cuda.memory_allocated() / 2**20 if device == "cuda" else memory_mb("VmRSS")


def peak_mb(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory_mb("VmHWM")


def reset_peak(device: str) -> None:
    """The peak counts from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def compare(
    classes: int, batch: int, repeats: int, sides: list[str], device: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        grads = {name: Path(folder) / f"{name}.npy" for name in sides}
        children = {
            name: subprocess.Popen(
                [sys.executable, __file__, "--side", name, "--classes", str(classes)]
                + ["--batch", str(batch), "--grads", str(grads[name]), "--device", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in sides
        }
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        warm = device == "cuda"
        for _ in range(repeats + warm):
            for name, child in children.items():
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write("step\n")
                child.stdin.flush()
                answers[name].append(json.loads(child.stdout.readline()))
        for child in children.values():
            child.communicate()
        out: dict[str, Any] = {"classes": classes, "batch": batch, "dim": DIM, "repeats": repeats}
        out["threads"], out["torch"] = torch.get_num_threads(), torch.__version__
        for name, steps in answers.items():
            steps = steps[warm:]
            out[name] = {
                "seconds": min(step["seconds"] for step in steps),
                "cpu_seconds": min(step["cpu_seconds"] for step in steps),
                "beyond_mb": max(step["beyond_mb"] for step in steps),
                "peak_mb": max(step["peak_mb"] for step in steps),
                "loss": steps[-1]["loss"],
            }
        mine = np.load(grads["ours"]).astype(np.float64)
        for name in sides:
            if name != "ours":
                other, theirs = out[name], np.load(grads[name]).astype(np.float64)
                out[name]["times_slower"] = other["seconds"] / out["ours"]["seconds"]
                out[name]["times_cpu"] = other["cpu_seconds"] / out["ours"]["cpu_seconds"]
                out[name]["times_memory"] = other["beyond_mb"] / out["ours"]["beyond_mb"]
                out[name]["loss_difference"] = abs(other["loss"] - out["ours"]["loss"])
                out[name]["gradient_error"] = float(
                    np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
                )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=85742)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only-ours", action="store_true", help="for sizes that the others cannot hold"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--grads", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.classes, args.batch, args.grads, args.device)
        return
    sides = ["ours"] if args.only_ours else list(SIDES)
    result = compare(args.classes, args.batch, args.repeats, sides, args.device)
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"C={args.classes} B={args.batch} D={DIM}, best of {args.repeats}, {result['threads']} threads"
    )
    for name in sides:
        row = result[name]
        text = f"{name:6} {row['seconds']:8.3f} s {row['cpu_seconds']:8.3f} CPU s"
        text += f" {row['beyond_mb']:8.0f} MB beyond, {row['peak_mb']:.0f} MB in all"
        if name != "ours":
            text += f"  x{row['times_slower']:.1f} slower, x{row['times_memory']:.1f} memory,"
            text += f" gradient off by {row['gradient_error']:.1e}"
        print(text)


if __name__ == "__main__":
    main()
