"""The AdaDistill head against the formulas written plainly, by autograd over the whole matrix."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fr_edge.distill.losses.adadistill import AdaDistill
from fr_edge.errors import UsageError


def plain_loss(
    student: Tensor, centres: Tensor, labels: Tensor, margin: str, m: float, s: float
) -> Tensor:
    """Margin softmax by definition: every angle, one matrix, autograd."""
    cosine = functional.normalize(student) @ functional.normalize(centres).T
    own = functional.one_hot(labels, len(centres)).to(cosine.dtype)
    if margin == "arcface":
        angle = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))
        logits = torch.where(own > 0, torch.cos(angle + m), cosine)
    else:
        logits = cosine - m * own
    return functional.cross_entropy(s * logits, labels)


def plain_alpha(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    near = functional.cosine_similarity(centre, teacher, dim=0).clamp(1e-6, 1)
    return (functional.cosine_similarity(student, teacher, dim=0).clamp(-1, 1) * near).clamp(
        1e-6, 1
    )


def example(batch: int, classes: int, dim: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Student, teacher, distinct labels where possible, raw centres."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=draw)
    labels = torch.randperm(max(classes, batch), generator=draw)[:batch] % classes
    teacher = centres[labels] + torch.randn(batch, dim, generator=draw)
    student = teacher + torch.randn(batch, dim, generator=draw)
    lengths = torch.rand(classes, 1, generator=draw) * 0.9 + 0.1
    return student, teacher, labels, functional.normalize(centres) * lengths


def loaded(centres: Tensor, **options: object) -> AdaDistill:
    head = AdaDistill(*centres.shape, **options)  # type: ignore[arg-type]
    head.load_centres(centres)
    return head


@pytest.mark.parametrize(
    ("batch", "classes", "dim"), [(1, 2, 3), (7, 5, 33), (13, 4111, 65), (64, 9001, 128)]
)
@pytest.mark.parametrize(("margin", "m"), [("arcface", 0.45), ("cosface", 0.35), ("arcface", 0.0)])
@pytest.mark.parametrize("s", [64.0, 8.0])
def test_loss_and_gradient_are_the_formulas(
    batch: int, classes: int, dim: int, margin: str, m: float, s: float
) -> None:
    student, teacher, labels, centres = example(batch, classes, dim)
    head = loaded(centres, margin=margin, m=m, s=s).eval()
    mine = student.clone().requires_grad_()
    loss = head(mine, teacher, labels)
    loss.backward()
    plain = student.double().requires_grad_()
    expected = plain_loss(plain, centres.double(), labels, margin, m, s)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert mine.grad is not None
    assert plain.grad is not None
    error = (mine.grad - plain.grad).norm() / plain.grad.norm()
    assert error < 1e-4


def test_the_loss_scales_its_gradient_and_needs_none() -> None:
    student, teacher, labels, centres = example(6, 40, 16)
    head = loaded(centres).eval()
    once, thrice = (student.clone().requires_grad_() for _ in range(2))
    head(once, teacher, labels).backward()
    (3 * head(thrice, teacher, labels)).backward()
    assert once.grad is not None
    torch.testing.assert_close(3 * once.grad, thrice.grad)
    with torch.no_grad():
        assert head(student, teacher, labels).item() > 0


def test_straight_gradient_is_that_of_a_constant_margin() -> None:
    student, teacher, labels, centres = example(6, 40, 16)
    exact, straight = (student.clone().requires_grad_() for _ in range(2))
    a = loaded(centres).eval()(exact, teacher, labels)
    b = loaded(centres, gradient="straight").eval()(straight, teacher, labels)
    a.backward()
    b.backward()
    assert a.item() == b.item()
    # The target's logit as a constant offset from the plain one: its slope by the cosine is s.
    plain = student.clone().requires_grad_()
    cosine = functional.normalize(plain) @ functional.normalize(centres).T
    own = functional.one_hot(labels, 40) > 0
    offset = torch.where(own, torch.cos(torch.acos(cosine) + 0.45) - cosine, 0.0).detach()
    functional.cross_entropy(64 * (cosine + offset), labels).backward()
    torch.testing.assert_close(straight.grad, plain.grad, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(exact.grad, straight.grad, rtol=1e-2)  # type: ignore[arg-type]


def test_centres_move_by_the_papers_rule_before_the_logits() -> None:
    student, teacher, labels, centres = example(9, 50, 24)
    head = loaded(centres)
    loss = head(student, teacher, labels)
    t = functional.normalize(teacher)
    expected = centres.clone()
    alphas = []
    for i, label in enumerate(labels):
        alpha = plain_alpha(student[i], teacher[i], centres[label])
        expected[label] = alpha * centres[label] + (1 - alpha) * t[i]
        alphas.append(alpha)
    torch.testing.assert_close(head.centres(), expected, rtol=1e-5, atol=1e-6)
    assert head.stats["alpha"].item() == pytest.approx(torch.stack(alphas).mean().item(), rel=1e-5)
    moved = plain_loss(student, expected, labels, "arcface", 0.45, 64.0)
    assert loss.item() == pytest.approx(moved.item(), rel=1e-5)
    untouched = [c for c in range(50) if c not in labels.tolist()]
    assert torch.equal(head.centres()[untouched], centres[untouched])


@pytest.mark.parametrize("trains", [True, False])
def test_adafaces_margin_follows_the_students_length(trains: bool) -> None:
    """Its formula by autograd in float64; the teacher moves the centres, and lengths the margin."""
    student, teacher, labels, centres = example(9, 50, 24)
    ends, signs = torch.tensor([0, 8]), torch.tensor([[-1.0], [1.0]])  # all but at pi, and at 0
    teacher[ends] = centres[labels[ends]]
    student[ends] = signs * functional.normalize(teacher[ends]) + 0.02 * student[ends]
    student = functional.normalize(student) * torch.linspace(1, 60, 9)[:, None]
    labels[3] = -1
    head = loaded(centres, margin="adaface", m=0.4, s=32.0).train(trains)
    head.length_mean.fill_(25.0)
    head.length_std.fill_(6.0)
    mine = student.clone().requires_grad_()
    loss = head(mine, teacher, labels)
    loss.backward()

    known = labels >= 0
    plain = student.double().requires_grad_()
    rows, own = plain[known], functional.one_hot(labels[known], 50) > 0
    lengths = rows.detach().norm(dim=1, keepdim=True)
    mean, std = 25.0, 6.0
    if trains:
        mean, std = 0.99 * mean + 0.01 * lengths.mean(), 0.99 * std + 0.01 * lengths.std()
    quality = ((lengths - mean) / (std + 0.001) * 0.33).clip(-1, 1)
    assert quality.min() == -1
    assert quality.max() == 1
    cosine = functional.normalize(rows) @ functional.normalize(head.centres().double()).T
    angle = cosine.acos() - 0.4 * quality
    assert angle[0, labels[0]] > math.pi
    assert angle[-1, labels[-1]] < 0
    angle = angle.clip(1e-3, math.pi - 1e-3)
    logits = torch.where(own, angle.cos() - (0.4 * quality + 0.4), cosine)
    expected = functional.cross_entropy(32.0 * logits, labels[known])
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert mine.grad is not None
    assert plain.grad is not None
    assert (mine.grad - plain.grad).norm() < 1e-4 * plain.grad.norm()
    assert head.length_mean.item() == pytest.approx(float(mean), rel=1e-5)
    assert head.length_std.item() == pytest.approx(float(std), rel=1e-5)
    other = loaded(centres)  # the centres do not depend on the margin
    other.train(trains)(student, teacher, labels)
    assert torch.equal(head.centres(), other.centres())


def test_lengths_are_kept_with_adafaces_margin_alone() -> None:
    """A training of an earlier fr-edge, whose head had no lengths, goes on."""
    assert set(AdaDistill(10, 8).state_dict()) == {"raw"}
    head, copy = (AdaDistill(10, 8, margin="adaface") for _ in range(2))
    head(torch.randn(4, 8), torch.randn(4, 8), torch.arange(4))
    copy.load_state_dict(head.state_dict())
    assert head.length_mean.item() != 20.0
    assert (copy.length_mean, copy.length_std) == (head.length_mean, head.length_std)


def test_two_negative_cosines_never_make_a_large_alpha() -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    teacher, student = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    head = loaded(centres)
    head(student, teacher, torch.tensor([0]))
    assert head.stats["alpha"].item() == pytest.approx(1e-6)
    torch.testing.assert_close(head.centres()[0], teacher[0], rtol=0, atol=1e-5)


def test_alpha_cosine_leaves_the_centre_out() -> None:
    student, teacher, labels, centres = example(9, 50, 24)
    head = loaded(centres, alpha="cosine")
    head(student, teacher, labels)
    cosine = functional.cosine_similarity(student, teacher).clamp(1e-6, 1)
    assert head.stats["alpha"].item() == pytest.approx(cosine.mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"alpha": "fixed"}, {}])
def test_fixed_centres_and_eval_mode_stay(options: dict[str, object]) -> None:
    student, teacher, labels, centres = example(9, 50, 24)
    head = loaded(centres, **options)
    if not options:
        head.eval()
    head(student, teacher, labels)
    assert torch.equal(head.centres(), centres)


def test_images_of_one_person_all_count_in_any_order() -> None:
    student, teacher, _, centres = example(6, 5, 24)
    labels = torch.tensor([3, 1, 3, 3, 0, 1])
    head = loaded(centres)
    head(student, teacher, labels)
    order = torch.tensor([5, 2, 4, 0, 3, 1])
    other = loaded(centres)
    other(student[order], teacher[order], labels[order])
    torch.testing.assert_close(head.centres(), other.centres(), rtol=1e-5, atol=1e-6)
    t = functional.normalize(teacher)
    alphas = torch.stack([plain_alpha(student[i], teacher[i], centres[3]) for i in (0, 2, 3)])
    stays = alphas.prod()
    weight = (1 - alphas) / (1 - alphas).sum()
    expected = stays * centres[3] + (1 - stays) * (weight[:, None] * t[[0, 2, 3]]).sum(0)
    torch.testing.assert_close(head.centres()[3], expected, rtol=1e-5, atol=1e-6)


def test_the_same_image_twice_is_as_two_updates() -> None:
    student, teacher, _, centres = example(1, 5, 24)
    head = loaded(centres)
    head(student.repeat(2, 1), teacher.repeat(2, 1), torch.tensor([2, 2]))
    alpha = plain_alpha(student[0], teacher[0], centres[2])
    t = functional.normalize(teacher)[0]
    once = alpha * centres[2] + (1 - alpha) * t
    torch.testing.assert_close(head.centres()[2], alpha * once + (1 - alpha) * t)


def test_official_keeps_the_last_image_alone() -> None:
    student, teacher, _, centres = example(4, 5, 24)
    head = loaded(centres, compat="official")
    head(student, teacher, torch.tensor([3, 1, 3, 3]))
    alpha = plain_alpha(student[3], teacher[3], centres[3])
    t = functional.normalize(teacher)[3]
    torch.testing.assert_close(
        head.centres()[3], alpha * centres[3] + (1 - alpha) * t, rtol=1e-5, atol=1e-6
    )


def test_label_minus_one_takes_no_part() -> None:
    student, teacher, labels, centres = example(8, 30, 24)
    labels[[2, 5]] = -1
    known = labels >= 0
    head, other = loaded(centres), loaded(centres)
    mine = student.clone().requires_grad_()
    loss = head(mine, teacher, labels)
    loss.backward()
    expected = other(student[known], teacher[known], labels[known])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(head.centres(), other.centres())
    assert mine.grad is not None
    assert not mine.grad[~known].any()
    empty = head(mine, teacher, torch.full((8,), -1))
    assert empty.item() == 0.0


def test_embeddings_at_the_edge_give_finite_gradients() -> None:
    centres = functional.normalize(torch.randn(10, 8))
    student = torch.stack([centres[0], -centres[1], torch.zeros(8)]).requires_grad_()
    loss = loaded(centres).eval()(student, torch.ones(3, 8), torch.tensor([0, 1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_half_precision_inputs_are_computed_in_float32() -> None:
    student, teacher, labels, centres = example(8, 300, 64)
    half = student.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loaded(centres).eval()(half, teacher, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    expected = plain_loss(student.bfloat16().float(), centres, labels, "arcface", 0.45, 64.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_the_state_survives_a_state_dict() -> None:
    student, teacher, labels, centres = example(8, 30, 24)
    head = loaded(centres)
    head(student, teacher, labels)
    copy = AdaDistill(30, 24)
    copy.load_state_dict(head.state_dict())
    head.eval()
    copy.eval()
    assert copy(student, teacher, labels).item() == head(student, teacher, labels).item()
    assert list(head.parameters()) == []


def test_random_start_at_paper_size_gives_the_known_loss() -> None:
    """Random embeddings, 85,742 classes, B=128, s=64, m=0.45: 43.3 (measured on the authors' head).

    The student's own centre is then its random teacher, at a right angle:
    64 cos(pi/2 + 0.45) against the log of 85,742 e^(64^2/(2*512)).
    """
    torch.manual_seed(0)
    head = AdaDistill(85742)
    loss = head(torch.randn(128, 512), torch.randn(128, 512), torch.arange(128))
    analytic = math.log(85742) + 64**2 / (2 * 512) + 64 * math.sin(0.45)
    assert loss.item() == pytest.approx(43.32, abs=0.5)
    assert loss.item() == pytest.approx(analytic, abs=0.5)


def test_centres_settle_where_the_authors_head_does() -> None:
    """Images at cosine 0.50 to one another, students at 0.857 to their teacher: alpha' 0.53,
    lambda 0.62, length 0.81, and 0.87 from centre to true mean, as measured on the authors' head."""
    torch.manual_seed(0)
    classes, dim = 64, 512
    mean = functional.normalize(torch.randn(classes, dim))
    head = AdaDistill(classes, dim)
    stats = []
    for step in range(60):
        labels = torch.arange(classes)
        t = functional.normalize(mean + functional.normalize(torch.randn(classes, dim)))
        away = functional.normalize(torch.randn(classes, dim))
        student = 0.857 * t + math.sqrt(1 - 0.857**2) * away
        with torch.no_grad():
            head(student, t, labels)
        if step >= 30:
            stats.append([head.stats[name].item() for name in ("alpha", "lambda", "cosine")])
    alpha, near, cosine = torch.tensor(stats).mean(0).tolist()
    assert cosine == pytest.approx(0.857, abs=0.01)
    assert alpha == pytest.approx(0.53, abs=0.02)
    assert near == pytest.approx(0.62, abs=0.02)
    assert head.centres().norm(dim=1).mean().item() == pytest.approx(0.81, abs=0.02)
    to_mean = functional.cosine_similarity(head.centres(), mean).mean().item()
    assert to_mean == pytest.approx(0.87, abs=0.02)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="margin"):
        AdaDistill(10, margin="sphere")
    with pytest.raises(UsageError, match="2"):
        AdaDistill(1)
    head = AdaDistill(10, 8)
    with pytest.raises(UsageError, match="10"):
        head(torch.ones(1, 8), torch.ones(1, 8), torch.tensor([10]))
    with pytest.raises(UsageError, match="8"):
        head(torch.ones(1, 8), torch.ones(1, 9), torch.tensor([0]))
    with pytest.raises(UsageError, match="10, 8"):
        head.load_centres(torch.ones(9, 8))
