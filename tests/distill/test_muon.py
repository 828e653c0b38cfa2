"""Muon: steps of matrices against a singular value decomposition and torch's own, the rest as AdamW's."""

import pytest
import torch
from torch import Tensor, nn

from fr_edge.distill.muon import Muon, matrices_of, orthogonal
from fr_edge.distill.networks import build_network

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # of float32's rounding in five iterations


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16), (1, 9), (9, 1)])
def test_singular_values_come_near_1_and_the_vectors_stay(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    matrices = (
        torch.randn(3, *shape, generator=draw) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    )
    steps = orthogonal(matrices)
    for matrix, step in zip(matrices, steps, strict=True):
        u, sizes, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        in_their_axes = u.T @ step.double() @ v.T
        diagonal = in_their_axes.diagonal()
        assert torch.allclose(in_their_axes, diagonal.diag(), atol=1e-3)
        large = sizes > 0.05 * sizes.max()
        assert large.any()
        assert bool(((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all())


def plain_orthogonal(matrix: Tensor) -> Tensor:
    """The iteration as it is published (Jordan et al.), in the numbers of its argument."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / max(float(matrix.norm()), 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16), (64, 27)])
def test_matrices_of_one_shape_are_computed_as_each_alone(shape: tuple[int, int]) -> None:
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(4))
    for matrix, step in zip(matrices, orthogonal(matrices), strict=True):
        torch.testing.assert_close(step.double(), plain_orthogonal(matrix.double()), **NEAR)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_the_formulas_matrix_by_matrix(layout: torch.memory_format) -> None:
    """Nesterov's momentum, decoupled decay and a step of AdamW's length; shapes in turns, one without
    a gradient at first."""
    draw = torch.Generator().manual_seed(5)
    shapes = [(6, 4, 1, 1), (4, 6, 1, 1), (6, 4, 1, 1), (8, 3, 3, 3), (6, 4, 1, 1), (4, 3, 2, 1)]
    starts = [torch.randn(shape, generator=draw) for shape in shapes]
    own = [nn.Parameter(start.clone().to(memory_format=layout)) for start in starts]
    plain = [start.double() for start in starts]
    buffers = [torch.zeros(shape) for shape in shapes]
    muon = Muon([{"params": own, "matrices": True}], 0.05, 0.1, momentum=0.9)
    for step in range(4):
        for number, shape in enumerate(shapes):
            if step == 0 and number == 2:
                continue
            grad = torch.randn(shape, generator=draw)
            own[number].grad = grad.clone().to(memory_format=layout)
            buffers[number] = buffers[number] * 0.9 + grad
            ahead = (grad + 0.9 * buffers[number]).double().flatten(1)
            moved = 0.05 * 0.2 * max(ahead.shape) ** 0.5 * plain_orthogonal(ahead)
            plain[number] = plain[number] * (1 - 0.05 * 0.1) - moved.reshape(shape)
        muon.step()
    for p, expected, buffer in zip(own, plain, buffers, strict=True):
        torch.testing.assert_close(p.detach().double(), expected, **NEAR)
        assert torch.equal(muon.state[p]["momentum_buffer"], buffer)
        assert muon.state[p].keys() == {"momentum_buffer"}


def test_a_gradient_of_zeros_gives_no_step() -> None:
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch below 2.9 has no Muon")
def test_matrices_move_as_under_torchs_muon() -> None:
    draw = torch.Generator().manual_seed(1)
    starts = [torch.randn(shape, generator=draw) for shape in ((6, 4), (4, 6), (6, 4))]
    own = [nn.Parameter(start[:, :, None, None].clone()) for start in starts]  # as 1x1 convolutions
    theirs = [nn.Parameter(start.clone()) for start in starts]
    ours = Muon([{"params": own, "matrices": True}], 0.05, 0.1)
    reference = torch.optim.Muon(
        theirs, lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        for a, b in zip(own, theirs, strict=True):
            grad = torch.randn(b.shape, generator=draw) * 10.0**step
            a.grad, b.grad = grad[:, :, None, None].clone(), grad.clone()
        ours.step()
        reference.step()
    for a, b, start in zip(own, theirs, starts, strict=True):
        moved = (b - start).norm()
        # torch computes the iteration in bfloat16 and averages its momentum, whose length is no matter
        assert (a[:, :, 0, 0] - b).norm() < 0.02 * moved
        assert a.grad is not None


def test_the_other_parameters_move_as_under_adamw() -> None:
    draw = torch.Generator().manual_seed(2)
    start = torch.randn(5, generator=draw)
    own, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    matrix = nn.Parameter(torch.randn(3, 3, generator=draw))
    ours = Muon([{"params": [matrix], "matrices": True}, {"params": [own]}], 0.05, 0.1)
    reference = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(4):
        own.grad = torch.randn(5, generator=draw)
        theirs.grad = own.grad.clone()
        matrix.grad = torch.randn(3, 3, generator=draw)
        ours.step()
        reference.step()
    assert torch.equal(own, theirs)
    assert set(ours.state[matrix]) == {"momentum_buffer"}


def test_the_length_of_a_gradient_is_no_matter() -> None:
    ends = []
    for length in (1e-3, 1e3):
        draw = torch.Generator().manual_seed(3)
        weight = nn.Parameter(torch.randn(4, 8, generator=draw))
        muon = Muon([{"params": [weight], "matrices": True}], 0.1, 0.0)
        for _ in range(3):
            weight.grad = torch.randn(4, 8, generator=draw) * length
            muon.step()
        ends.append(weight.detach())
    assert torch.allclose(*ends, atol=1e-4)


def test_a_closure_gives_the_gradients_of_the_step() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    muon = Muon([{"params": [weight], "matrices": True}], 0.1, 0.0)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert muon.step(closure) == 12.0
    assert not torch.equal(weight, torch.ones(3, 4))


def test_depthwise_filters_and_vectors_are_no_matrices() -> None:
    network = build_network("mobilefacenet-0.25-affine", 32)
    names = {id(p): name for name, p in network.named_parameters()}
    matrices = [names[id(p)] for p in matrices_of(network)]
    assert len(matrices) == len(set(matrices))
    assert {"features.0.0.weight", "features.2.body.0.0.weight", "embed.weight"} <= set(matrices)
    depthwise = {"features.1.0.weight", "features.2.body.1.0.weight", "pool.0.weight"}
    assert not depthwise & set(matrices)
    assert all(p.ndim > 1 for p in matrices_of(network))
