"""The learning rate of a step."""

import math

from .recipe import Recipe


def rate(recipe: Recipe, step: int, steps: int, per_epoch: int) -> float:
    """Of step 0..steps-1: a straight climb over the warm-up, then the recipe's schedule.

    "step" multiplies by gamma at each milestone epoch (0-based), "polynomial" is
    (1 - progress)^power, "cosine" half a cosine, both to zero after the last step.
    """
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "step":
        passed = sum(step // per_epoch >= milestone for milestone in recipe.milestones)
        return recipe.lr * recipe.gamma**passed
    progress = (step - warmup) / max(1, steps - warmup)
    if recipe.schedule == "polynomial":
        return float(recipe.lr * (1.0 - progress) ** recipe.power)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return recipe.lr
