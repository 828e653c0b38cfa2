"""Learned centres: the formulas, torch's own optimizers, and sampled classes."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.losses.heads import MarginHead
from fr_edge.distill.losses.margin_softmax import angular_logit

LABELS = torch.tensor([1, 8, -1, 1, 0])


def student(seed: int = 0) -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(seed + 50)) * 20


def plain_loss(kind: str, rows: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Over the centres in `classes`, without margins of chance."""
    known = LABELS >= 0
    rows, labels = rows[known], LABELS[known]
    cosine = functional.normalize(rows) @ functional.normalize(weight[classes]).T
    own = labels[:, None] == classes[None, :]
    angle = torch.acos(cosine)
    if kind == "adaface":
        lengths = rows.norm(dim=1, keepdim=True).detach().clamp(0.001, 100)
        mean = 0.99 * 20 + 0.01 * lengths.mean()
        std = 0.99 * 100 + 0.01 * lengths.std()
        quality = ((lengths - mean) / (std + 0.001) * 0.33).clamp(-1, 1)
        with_margin = torch.cos(angle - 0.3 * quality) - (0.3 * quality + 0.3)
    else:
        with_margin = cosine - 0.3 if kind == "cosface" else torch.cos(angle + 0.3)
    target = own.int().argmax(1)
    return functional.cross_entropy(16.0 * torch.where(own, with_margin, cosine), target)


def head(kind: str = "arcface", **options: object) -> MarginHead:
    torch.manual_seed(0)
    return MarginHead(9, 12, kind, 0.3, 16.0, 0.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["arcface", "cosface", "elasticface", "adaface"])
def test_a_learned_head_is_its_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin_softmax, "_CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr(margin_softmax, "_MIN_CHUNK", 4)  # three chunks of classes
    one, rows = head(kind), student().requires_grad_()
    weight = one.weight.clone().requires_grad_()
    expected = plain_loss(kind, rows, weight, torch.arange(9))
    wanted = torch.autograd.grad(expected, (rows, weight))
    loss = one(rows, None, LABELS)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(rows.grad, 3 * wanted[0], rtol=1e-4, atol=1e-7)
    before = one.weight.clone()
    one.update(0.1, 0.9, 0.0)
    torch.testing.assert_close(one.weight, before - 0.3 * wanted[1], rtol=1e-5, atol=1e-5)


def test_an_angle_with_adafaces_margin_stays_inside_0_to_pi() -> None:
    """Value and derivative of s cos(clip(theta + g, .001, pi - .001)) by autograd, in all three parts."""
    theta, angle = torch.meshgrid(
        torch.linspace(0.05, math.pi - 0.05, 41).double(),
        torch.linspace(-0.4, 0.4, 9).double(),
        indexing="ij",
    )
    cosine = theta.flatten().cos().requires_grad_()
    angle = angle.flatten()
    with_margin = cosine.acos() + angle
    expected = 64 * (with_margin.clip(1e-3, math.pi - 1e-3).cos() - 0.2)
    (slope,) = torch.autograd.grad(expected.sum(), cosine)
    held_low, held_high = with_margin < 1e-3, with_margin > math.pi - 1e-3
    assert held_low.sum() > 10
    assert held_high.sum() > 10
    given = cosine.detach(), angle, torch.full_like(angle, 0.2), 64.0
    result = angular_logit(*given, clips=True)
    torch.testing.assert_close(result, (expected.detach(), slope))
    assert not result[1][held_low | held_high].any()
    assert bool((angular_logit(*given)[1][held_low | held_high] < 0).all())  # which pushes away


def test_adaface_leaves_a_clear_image_near_its_centre() -> None:
    """Rows in both parts that are held and between them, against the formula in float64 by autograd."""
    one = head("adaface").eval()
    one.length_mean.fill_(20.0)
    one.length_std.fill_(5.0)  # lengths of 0 and 40 have all of the margin
    labels = torch.tensor([1, 8, 3, 1, 0])
    centres = functional.normalize(one.weight.double())
    away = functional.normalize(student().double())
    away = functional.normalize(
        away - (away * centres[labels]).sum(1, keepdim=True) * centres[labels]
    )
    theta = torch.tensor([0.1, 3.0, 0.1, 3.0, 1.0]).double()[:, None]
    lengths = torch.tensor([40.0, 1.0, 1.0, 40.0, 25.0]).double()[:, None]
    rows = lengths * (theta.cos() * centres[labels] + theta.sin() * away)
    quality = ((lengths - 20) / (5 + 1e-3) * 0.33).clip(-1, 1)
    turned = theta - 0.3 * quality
    assert (turned < 0).flatten().tolist() == [True, False, False, False, False]
    assert (turned > math.pi).flatten().tolist() == [False, True, False, False, False]

    weight = one.weight.double().requires_grad_()
    plain = rows.clone().requires_grad_()
    cosine = functional.normalize(plain) @ functional.normalize(weight).T
    held = (cosine.acos() - 0.3 * quality).clip(1e-3, math.pi - 1e-3)
    own = functional.one_hot(labels, 9) > 0
    logits = torch.where(own, held.cos() - (0.3 * quality + 0.3), cosine)
    expected = functional.cross_entropy(16.0 * logits, labels)
    wanted = torch.autograd.grad(expected, (plain, weight))

    mine = rows.float().requires_grad_()
    loss = one(mine, None, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(mine.grad.double(), wanted[0], rtol=1e-3, atol=1e-7)
    before = one.weight.clone()
    one.update(0.1, 0.9, 0.0)
    torch.testing.assert_close(one.weight, before - 0.1 * wanted[1].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adam", [False, True])
def test_centres_move_as_under_torchs_optimizer(adam: bool) -> None:
    one = head(adam=adam)
    weight = nn.Parameter(one.weight.clone())
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        rows = student(step).requires_grad_()
        for part in (0, 1):  # two parts of a batch are one step
            (one(rows * (1 + part), None, LABELS) / 2).backward()
            (plain_loss("arcface", rows * (1 + part), weight, torch.arange(9)) / 2).backward()
        one.update(0.05, 0.9, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(one.weight, weight.detach(), rtol=1e-4, atol=1e-5)


def test_sampled_classes_are_exact_and_the_others_stay() -> None:
    one, rows = head(sample=0.6), student().requires_grad_()
    one.momentum.fill_(0.01)
    picked: list[Tensor] = []
    draw = one._pick_classes

    def watched(labels: Tensor) -> Tensor | None:
        picks = draw(labels)
        assert picks is not None
        picked.append(picks)
        return picks

    one._pick_classes = watched  # type: ignore[method-assign]
    loss = one(rows, None, LABELS)
    classes = picked[0]
    assert len(classes) == math.ceil(0.6 * 9)
    assert {0, 1, 8} <= set(classes.tolist())  # the batch's own
    weight = one.weight.clone().requires_grad_()
    expected = plain_loss("arcface", rows, weight, classes)
    (wanted,) = torch.autograd.grad(expected, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    before = one.weight.clone()
    one.update(0.1, 0.9, 0.01)
    others = sorted(set(range(9)) - set(classes.tolist()))
    assert torch.equal(one.weight[others], before[others])
    assert bool((one.momentum[others] == 0.01).all())
    moved = 0.9 * 0.01 + wanted + 0.01 * before
    torch.testing.assert_close(one.weight[classes], (before - 0.1 * moved)[classes])


def test_few_samples_still_hold_every_person_of_the_batch() -> None:
    """As many as the batch has images, so that no number is read from the device."""
    one, seen = head(sample=0.1), set()
    for _ in range(5):
        picks = one._pick_classes(LABELS)
        assert picks is not None
        classes = picks.tolist()
        assert classes == sorted(set(classes))
        assert len(classes) == len(LABELS)
        assert {0, 1, 8} < set(classes)
        seen |= set(classes)
    assert len(seen) > len(LABELS)  # the rest are drawn anew


def test_parts_of_a_batch_add_up_over_the_classes_that_they_picked() -> None:
    """Two parts with samples of their own move each centre as their sum would."""
    one = head(sample=0.6)
    one.momentum.fill_(0.01)
    total, before = torch.zeros(9, 12), one.weight.clone()
    for part in (0, 1):
        one(student(part).requires_grad_(), None, LABELS).backward()
        picks, grads = one._gradients[-1]
        assert picks is not None
        total[picks] += grads
    touched = total.abs().sum(1) > 0
    assert touched.sum() > math.ceil(0.6 * 9)  # the samples differ, and overlap in the batch's own
    one.update(0.1, 0.9, 0.01)
    moved = before - 0.1 * (0.9 * 0.01 + total + 0.01 * before)
    torch.testing.assert_close(one.weight, torch.where(touched[:, None], moved, before))


def test_all_classes_are_compared_with_in_eval_mode() -> None:
    one = head(sample=0.2).eval()
    expected = plain_loss("arcface", student(), one.weight, torch.arange(9))
    assert one(student(), None, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)


def test_elastic_margins_are_drawn_anew() -> None:
    one = MarginHead(9, 12, "elasticface", 0.3, 16.0, 0.1)
    assert one(student(), None, LABELS).item() != one(student(), None, LABELS).item()


@pytest.mark.parametrize("adam", [False, True])
def test_a_gradient_that_is_not_finite_moves_nothing(adam: bool) -> None:
    one, rows = head(adam=adam), student().requires_grad_()
    (one(rows, None, LABELS) * math.inf).backward()
    before = one.weight.clone()
    one.momentum.fill_(0.01)
    one.update(0.1, 0.9, 0.1)
    assert torch.equal(one.weight, before)
    assert bool((one.momentum == 0.01).all())


def test_ranks_with_one_class_more_or_less_draw_alike() -> None:
    """Five classes and four: one of them compares with all of its own, and draws all the same."""
    states = []
    for rank in (0, 1):
        part = head(sample=0.5, ranks=Ranks(rank, 2))
        part.last = part.first + (5, 4)[rank]
        torch.manual_seed(0)
        picked = part._pick_classes(torch.tensor([0, 1, 2, 3]))
        states.append((picked is None, torch.get_rng_state()))
    assert [state[0] for state in states] == [False, True]
    assert torch.equal(states[0][1], states[1][1])
