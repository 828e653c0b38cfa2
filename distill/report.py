"""What a training leaves behind: `reports/training.json`."""

from typing import Any

from ..faces.sources import Faces
from .data import Split
from .recipe import recipe_to_json
from .run import Run


def training_report(run: Run, faces: Faces, parts: Split, teacher: float | None) -> dict[str, Any]:
    """Accuracies are fractions, `teacher` the teacher's on the same pairs; the loss, lr and head's
    means are averages over the steps since the point before."""
    first = run.verification[0]["accuracy"] if run.verification else None
    last = run.verification[-1]["accuracy"] if run.verification else None
    seen = run.step * run.recipe.batch
    return {
        "recipe": recipe_to_json(run.recipe),
        "faces": faces.where,
        "device": str(run.ranks.device),
        "ranks": run.ranks.size,
        "precision": str(run.amp or "torch.float32").removeprefix("torch."),
        "images": len(parts.train),
        "identities": parts.classes,
        "steps": run.step,
        "seconds": round(run.seconds, 2),
        "images_per_s": round(seen / max(run.seconds, 1e-9), 1),
        "accuracy": last,
        "untrained_accuracy": first,
        "teacher_accuracy": teacher,
        "best": max(run.verification, key=lambda v: v["accuracy"], default=None),
        "curve": run.curve,
        "verification": run.verification,
    }
