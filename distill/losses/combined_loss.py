"""The loss of a training: a weighted sum of terms, by the names that a recipe gives.

Every term is called `term(student, teacher, labels)` with this rank's rows. Its value is the mean over
the rows of all ranks, and its gradient that of this mean by this rank's rows, so a training does not
depend on the number of ranks. No term makes a tensor of batch times classes or images.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..distributed import Ranks
from ..recipe import FROM_SCRATCH, Recipe, loss_weights
from .adadistill import AdaDistill
from .heads import MarginHead
from .margin_softmax import chunked_logsumexp

_EPS = 1e-12  # smallest length to divide by


class FeatureLoss(nn.Module):
    """Distance of the unit embeddings of student and teacher.

    Args:
        kind: "mse" is the mean of |a - b|^2, "cosine" that of 1 - cos.
        ranks: The processes; by default one.

    Attributes:
        stats: Means over the last batch: cosine.
    """

    def __init__(self, kind: str, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.kind, self.ranks = kind, ranks or Ranks()
        self.stats: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The mean distance.

        Args:
            student: `(B, D)`, of any length.
            teacher: `(B, D)`, of any length.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            Mean over the rows of all ranks, `() float32`.
        """
        known = labels >= 0
        cosine = functional.cosine_similarity(student.float(), teacher.float())
        mean = _mean_over_ranks(cosine, known, self.ranks)
        self.stats = {"cosine": mean.detach()}
        # |a - b|^2 = 2 - 2 cos for unit vectors
        return (2.0 if self.kind == "mse" else 1.0) * (1.0 - mean)


class RelationalLoss(nn.Module):
    """Difference of the similarities within the batch, similarity-preserving distillation.

    arXiv 1907.09682, eq. 3 and 4: |G_student - G_teacher|^2 / B^2, where G are the inner products of the
    batch's unit embeddings with each row brought to unit length.

    Args:
        ranks: The processes, whose rows are one batch; by default one.

    Attributes:
        stats: Empty.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.ranks = ranks or Ranks()
        self.stats: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The mean squared difference.

        Args:
            student: `(B, D)`, of any length.
            teacher: `(B, D)`, of any length.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            Mean over the pairs of all ranks' rows, `() float32`.
        """
        e = functional.normalize(student.float(), dim=1, eps=_EPS)
        rows, start = self.ranks.gather(e.detach()), self.ranks.rank * len(e)
        rows = torch.cat([rows[:start], e, rows[start + len(e) :]])
        known = self.ranks.gather(labels) >= 0
        target = functional.normalize(self.ranks.gather(teacher.float()), dim=1, eps=_EPS)
        # Rows of zeros for those without a label: they have no similarity to any.
        own, wanted = (_similarities(torch.where(known[:, None], x, 0.0)) for x in (rows, target))
        return (own - wanted).square().sum() / known.sum().clamp_min(1).square()


class BankLoss(nn.Module):
    """How a face lies among many others, as the student and as the teacher see it.

    The Kullback-Leibler divergence of two softmaxes over the similarities to a constant bank of
    embeddings of the teacher, after SEED (arXiv 2101.04731, eq. 3 to 5), with the bank in the place of
    its queue. Both softmaxes are computed chunk by chunk: with the means m of the bank under them,

        loss = s t.m_t - log sum_j exp(s t.b_j)  -  s e.m_t + log sum_j exp(s e.b_j)
        d loss / d e = s (m_s - m_t)

    Args:
        bank: Unit embeddings of the teacher, `(N, D) float32`.
        s: Scale of the similarities.
        ranks: The processes; by default one.

    Attributes:
        stats: Empty.
    """

    bank: Tensor
    ones: Tensor

    def __init__(self, bank: Tensor, s: float, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.s, self.ranks = s, ranks or Ranks()
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("ones", torch.ones(len(bank)), persistent=False)
        self.stats: dict[str, Tensor] = {}

    def load_bank(self, bank: Tensor) -> None:
        """Replace the bank.

        Args:
            bank: Unit embeddings of the teacher, `(N, D) float32`.
        """
        self.bank = bank.to(self.bank.device)
        self.ones = torch.ones(len(bank), device=self.bank.device)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The mean divergence.

        Args:
            student: `(B, D)`, of any length.
            teacher: `(B, D)`, of any length.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            Mean over the rows of all ranks, `() float32`.
        """
        with torch.autocast(student.device.type, enabled=False):
            e = functional.normalize(student.float(), dim=1, eps=_EPS)
            t = functional.normalize(teacher.float(), dim=1, eps=_EPS)
            with torch.no_grad():
                wanted, teacher_sum = self._softmax(t)
                mean, student_sum = self._softmax(e)
                entropy = self.s * (t * wanted).sum(1) - teacher_sum
            # The gradient of the student's log sum by e is s times its mean.
            log_sum = student_sum + self.s * ((e - e.detach()) * mean).sum(1)
            rows = entropy - self.s * (e * wanted).sum(1) + log_sum
        return _mean_over_ranks(rows, labels >= 0, self.ranks)

    def _softmax(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bank's mean under each row's softmax `(B, D)`, and its log sum of exponentials `(B,)`."""
        no_target = torch.full((len(rows),), -1, device=rows.device)
        largest, total, sums = chunked_logsumexp(
            rows, self.bank, self.ones, no_target, self.s, with_grad=True
        )
        return sums / total[:, None], largest + total.log()


Term = AdaDistill | FeatureLoss | RelationalLoss | BankLoss | MarginHead


class CombinedLoss(nn.Module):
    """The weighted sum of terms.

    Args:
        terms: By name.
        weights: Factor of each.
        ranks: The processes, over which gradients will be averaged.

    Attributes:
        stats: Statistics of the terms over the last batch, and the value of each where there are
            several: "loss_" and its name.
    """

    def __init__(
        self, terms: Mapping[str, Term], weights: Mapping[str, float], ranks: Ranks
    ) -> None:
        super().__init__()
        self.terms, self.weights, self.ranks = nn.ModuleDict(terms), dict(weights), ranks
        self.stats: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The sum.

        Args:
            student: `(B, D)`, of any length.
            teacher: `(B, D)`, of any length; None where no term needs it.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            `() float32`, with its gradient times the number of ranks: their mean is the whole.
        """
        total, self.stats = student.new_zeros((), dtype=torch.float32), {}
        for name, term in self.terms.items():
            value = term(student, teacher, labels)
            if len(self.terms) > 1:
                self.stats[f"loss_{name}"] = value.detach()
            self.stats.update(term.stats)  # type: ignore[arg-type]
            total = total + self.weights[name] * value
        return total + (self.ranks.size - 1) * (total - total.detach())

    def learned_heads(self) -> list[MarginHead]:
        """The terms whose centres are learned."""
        return [term for term in self.terms.values() if isinstance(term, MarginHead)]

    def class_shards(self) -> dict[str, tuple[int, int, dict[str, Tensor]]]:
        """What is shared among the ranks by class: name of the term -> first class, one past the
        last, and its tensors `(C', D)` by name."""
        shards: dict[str, tuple[int, int, dict[str, Tensor]]] = {}
        for name, term in self.terms.items():
            if isinstance(term, AdaDistill):
                shards[name] = term.first, term.last, {"raw": term.raw}
            elif isinstance(term, MarginHead):
                tensors = {"weight": term.weight, "momentum": term.momentum}
                if len(term.square):
                    tensors["square"] = term.square
                shards[name] = term.first, term.last, tensors
        return shards


def build_loss(recipe: Recipe, num_classes: int, dim: int, ranks: Ranks) -> CombinedLoss:
    """The loss that a recipe names; the term "bank" starts with an empty bank.

    Args:
        recipe: Its `losses` and their options.
        num_classes: Number of identities in the data.
        dim: Size of the embeddings that are compared.
        ranks: The processes; the classes are shared among them.

    Raises:
        UsageError: Fewer classes than 2 or than ranks.
    """
    weights = loss_weights(recipe.losses)
    terms: dict[str, Term] = {}
    for name in weights:
        if name in ("adadistill", "centres"):
            terms[name] = AdaDistill(
                num_classes,
                dim,
                recipe.margin,
                recipe.m,
                recipe.s,
                alpha=recipe.alpha if name == "adadistill" else "fixed",
                gradient=recipe.gradient,
                compat=recipe.compat,
                ranks=ranks,
            )
        elif name in FROM_SCRATCH:
            terms[name] = MarginHead(
                num_classes,
                dim,
                name,
                recipe.m,
                recipe.s,
                recipe.sigma,
                sample=recipe.sample,
                adam=recipe.optimizer != "sgd",
                ranks=ranks,
            )
        elif name == "relational":
            terms[name] = RelationalLoss(ranks)
        elif name == "bank":
            terms[name] = BankLoss(torch.empty(0, dim), recipe.bank_s, ranks)
        else:
            terms[name] = FeatureLoss(name, ranks)
    return CombinedLoss(terms, weights, ranks)


def _mean_over_ranks(values: Tensor, known: Tensor, ranks: Ranks) -> Tensor:
    """Mean of the known rows of all ranks `()`; its gradient is that by this rank's rows."""
    count = ranks.sum(known.sum().float()).clamp_min(1.0)
    own = torch.where(known, values, 0.0).sum() / count
    return own + (ranks.sum(own.detach().clone()) - own.detach())


def _similarities(rows: Tensor) -> Tensor:
    """Inner products of unit rows `(B, B)`, each row of them of unit length."""
    return functional.normalize(rows @ rows.T, dim=1, eps=_EPS)
