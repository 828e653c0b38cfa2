"""Every term of a loss against its plain formula, and their sum."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.losses import margin_softmax
from fr_edge.distill.losses.combined_loss import BankLoss, FeatureLoss, RelationalLoss, build_loss
from fr_edge.distill.recipe import Recipe

LABELS = torch.tensor([0, 1, 2, -1, 3, 4, 5])
KNOWN = LABELS >= 0


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(
    term: torch.nn.Module, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    loss = term(student, teacher, LABELS)
    (grad,) = torch.autograd.grad(loss, student)
    return loss.detach(), grad


def unit(x: Tensor) -> Tensor:
    return functional.normalize(x)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (unit(student[KNOWN]) - unit(teacher[KNOWN])).square().sum(1).mean()


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    grams = [unit(x[KNOWN]) @ unit(x[KNOWN]).T for x in (student, teacher)]
    return (unit(grams[0]) - unit(grams[1])).square().mean()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    bank = unit(rows(500, 9))
    own, wanted = (torch.log_softmax(14 * unit(x[KNOWN]) @ bank.T, 1) for x in (student, teacher))
    return functional.kl_div(own, wanted, log_target=True, reduction="batchmean")


@pytest.mark.parametrize(
    ("term", "plain"),
    [
        (FeatureLoss("mse"), squared_distance),
        (FeatureLoss("cosine"), lambda s, t: squared_distance(s, t) / 2),
        (RelationalLoss(), similarity_preserving),
        (BankLoss(unit(rows(500, 9)), 14.0), divergence),
    ],
    ids=["mse", "cosine", "relational", "bank"],
)
def test_a_term_is_its_formula(
    term: torch.nn.Module, plain: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(margin_softmax, "_CPU_CHUNK_BYTES", 1)  # several chunks of the bank
    student, teacher = rows(7, 1) * 3, rows(7, 2)
    loss, grad = value_and_gradient(term, student, teacher)
    student.requires_grad_()
    expected = plain(student, teacher)  # type: ignore[operator]
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient() -> None:
    same = rows(7, 1)
    bank = unit(rows(40, 3))
    for term in (FeatureLoss("mse"), RelationalLoss(), BankLoss(bank, 14.0)):
        loss, grad = value_and_gradient(term, same, same)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert grad.abs().max().item() < 1e-5


def test_a_batch_of_no_known_rows_has_no_loss() -> None:
    unlabelled = torch.full((7,), -1)
    student = rows(7, 1).requires_grad_()
    for term in (FeatureLoss("mse"), RelationalLoss(), BankLoss(unit(rows(40, 3)), 14.0)):
        loss = term(student, rows(7, 2), unlabelled)
        loss.backward()
        assert torch.isfinite(loss)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_the_sum_weighs_its_terms() -> None:
    recipe = Recipe(losses=("adadistill", "cosine:20", "bank:5"), s=32.0)
    torch.manual_seed(0)
    loss = build_loss(recipe, 6, 12, Ranks()).eval()
    bank = loss.terms["bank"]
    assert isinstance(bank, BankLoss)
    bank.load_bank(unit(rows(50, 4)))
    student, teacher = rows(7, 1), rows(7, 2)
    parts = [term(student, teacher, LABELS).item() for term in loss.terms.values()]
    assert loss(student, teacher, LABELS).item() == pytest.approx(
        parts[0] + 20 * parts[1] + 5 * parts[2], rel=1e-5
    )
    stats = {name: value.item() for name, value in loss.stats.items()}
    assert stats["loss_bank"] == pytest.approx(parts[2], rel=1e-5)
    assert {"loss_adadistill", "loss_cosine", "alpha", "cosine"} <= set(stats)
    assert set(loss.class_shards()) == {"adadistill"}


def test_no_term_makes_a_row_per_image_of_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 points of reference: 64 rows of them would be 51 MB; no chunk has more than 1 MB."""
    largest = 0
    plain = torch.mm

    def watched(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, out.numel())
        return plain(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    BankLoss(unit(torch.randn(200_000, 8)), 14.0)(
        torch.randn(64, 8), torch.randn(64, 8), torch.zeros(64, dtype=torch.int64)
    )
    assert 0 < largest * 4 <= 1 << 20
