"""The sweep for CUDA: what lies between its two matrix products becomes one kernel.

On a CPU a chunk of logits stays in the cache and is worked on in place (sweep.py). On a GPU each
of those small operations would carry the chunk through memory once more: torch.compile makes one
of them, and where it cannot (no Triton, say) they run one by one, with a warning.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_CHUNK_BYTES = 64 << 20

Absorb = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def absorb(
    z: Tensor, lengths: Tensor, own: Tensor, largest: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One chunk into the running values.

    `z (B, K)` products with raw centres, `lengths (K,)` their inverse lengths, `own (B,)` the
    row's own column (outside 0..K-1: not here), `largest (B,)` and `total (B,)` so far. Returns
    the new two, what scales the older sums `(B,)`, and the weights of the centres `(B, K)`.
    """
    z = z * lengths
    columns = torch.arange(z.shape[1], device=z.device)
    z = torch.where(columns == own[:, None], -torch.inf, z)
    high = torch.maximum(largest, z.amax(1))
    # A row that has seen nothing but its own class has no largest logit yet.
    shift = torch.where(high == -torch.inf, 0.0, high)
    fade = (largest - shift).exp()
    p = (z - shift[:, None]).exp()
    return high, total * fade + p.sum(1), fade, p * lengths


def fused_sweep(
    e: Tensor,
    raw: Tensor,
    inverse: Tensor,
    labels: Tensor,
    s: float,
    want_pull: bool,
    step: Absorb | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sweep.sweep`; `step` is `absorb` or a compiled form of it."""
    step = step or _compiled()
    batch, classes = len(e), len(raw)
    width = max(64, _CHUNK_BYTES // (4 * max(1, batch)))
    scaled = e * s
    largest = e.new_full((batch,), -torch.inf)
    total = torch.zeros_like(largest)
    pull = torch.zeros_like(e)
    for start in range(0, classes, width):
        centres, lengths = raw[start : start + width], inverse[start : start + width]
        z = scaled @ centres.T
        largest, total, fade, p = step(z, lengths, labels - start, largest, total)
        if want_pull:
            pull = torch.addmm(pull * fade[:, None], p, centres)
    return largest, total, pull


@lru_cache(1)
def _compiled() -> Absorb:
    """`absorb` as one kernel, or as it is from the first time that this cannot be had."""
    fused: Absorb = torch.compile(absorb, dynamic=True)
    failed = False

    def step(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        nonlocal failed
        if not failed:
            try:
                return fused(*given)
            except Exception as error:  # a missing compiler shows itself in many classes
                failed = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(
                    f"the head runs uncompiled, and slower: {reason[0]}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return absorb(*given)

    return step
