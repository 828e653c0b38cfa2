"""Whether people can judge an engine: are their labels right, and do they show the input contract?

Reference and engine share both, so with wrong labels or a wrong contract they lose alike, and the change
of their rates proves nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import F32, I64
from ...bundle.manifest import Bundle
from ...faces.contract import ContractVariant, InputSpec, contract_variants
from ...faces.sources import Faces
from ...metrics.comparison import VerificationComparison
from ...metrics.decidability import (
    SEPARATES,
    PairSums,
    d_prime,
    lead_in_errors,
    mean_impostor,
    pair_sums,
)
from ...metrics.verification import allowed_impostors, cosines, far_name, normalise
from ..session import Session
from .gates import CANNOT_JUDGE, MORE_PEOPLE, VerdictReason
from .judgement import judged_rate
from .limits import Limits

# A reference beyond these hardly tells people apart, so a loss against it proves nothing. Each limit
# lies between networks that are weak and those that are fed wrongly or broken (MobileFaceNets on 80
# to 150 people of LFW, docs/results/verification.md).
_MAX_REFERENCE_EER = 0.2  # right 0.005 and 0.010, weak 0.058, pixels on a wrong scale 0.32 to 0.40
_MIN_REFERENCE_TAR = 0.5  # at FAR 1e-2: right 0.99, weak 0.82, a layer broken 0.43 and 0.49
MIN_JUDGED_TAR = 0.1  # at the judged FAR: right 0.81 and 0.97, weak 0.38, wrong scale to 0.03
_WRONG_CONTRACT = (
    "are the faces aligned, the labels right, the input contract the network's"
    " (`fr-edge find-preprocessing`)?"
)

# Share of doubtful faces from which labels and network cannot be told apart. Right networks have none
# worth a sentence; a layer broken 0.37 and 0.41, pixels on a wrong scale 0.82 to 0.90.
_MIXED_LABELS = 0.3
# Share of faces in the wrong folder from which rates prove nothing: a tenth of the genuine pairs of
# people with two faces is then wrong, and a limit of 0.01 on the loss of TAR means nothing.
_MANY_WRONG = 0.05
# Share of the impostor pairs that a FAR accepts from which pairs of one person set the threshold.
_MANY_ACCEPTED = 0.1
_CORRECT_LABELS = "correct the labels, or give people whom the original network tells apart"

_CONTRACT_PEOPLE = 20  # with two faces: fewer show no contract
_CONTRACT_TRIED = 130  # people at most
_SCOUTED = 20  # people at most on whom every contract is tried; a third at most
_RIVALS = 3  # contracts at most that are tried on all of the people
# Mean cosine of different people from which it is no contract of a training. On LFW right contracts have
# .007, .02 and .09 (y1, casia, SFace), networks of random weights .28 to .92.
_ALIKE = 0.35
_SAME_INPUT = 0.999  # mean cosine of embeddings under contracts that count as one: 127.5 and 128
# Standard errors of its lead beyond which another contract is more likely right, three to one; and beyond
# which the people show that it is. Right contracts are doubted by the first in 1 of 100 draws of 20
# people, and in none of 40 or more (docs/results/verification.md).
_LIKELY, _SHOWN = 0.674, 1.96
_BATCH = 32  # faces embedded at a time
_FIND = "`fr-edge find-preprocessing` compares the contracts"
_EXPORT = "export again: `fr-edge find-preprocessing` finds the contract"


@dataclass(frozen=True)
class Doubts:
    """What lets people prove nothing, or less.

    Attributes:
        reasons: Why the verdict is CANNOT JUDGE.
        findings: What looks wrong and decides nothing, in words.
        not_measured: What these people do not show, in words.
    """

    reasons: tuple[VerdictReason, ...] = ()
    findings: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContractTrial:
    """Whether people show the input contract of a network.

    Attributes:
        doubt: Why another contract is more likely right, a reason for CANNOT JUDGE; None where none is.
        not_shown: Why the people do not show that the contract is right; empty where they do, and
            where there is a doubt.
    """

    doubt: VerdictReason | None = None
    not_shown: str = ""


def reference_doubt(limits: Limits, comparison: VerificationComparison) -> VerdictReason | None:
    """Whether the reference itself hardly tells people apart, so that nothing can be lost.

    Args:
        limits: With the FAR.
        comparison: Rates of reference and engine.

    Returns:
        A reason for CANNOT JUDGE; None where the reference tells people apart.
    """
    eer, rate = comparison.curves.reference.eer, judged_rate(limits, comparison.tar)
    lenient = comparison.tar[far_name(1e-2)]
    if lenient.reference is not None and lenient.reference < _MIN_REFERENCE_TAR:
        fact = f"it accepts {lenient.reference:.1%} of the genuine pairs at FAR 1e-2"
    elif eer > _MAX_REFERENCE_EER:
        fact = f"its equal error rate is {eer:.1%}"
    elif rate.reference is not None and rate.reference < MIN_JUDGED_TAR:
        fact = (
            f"it accepts {rate.reference:.1%} of the genuine pairs at FAR {far_name(rate.far)}; a"
            " larger --far may be judged"
        )
    else:
        return None
    return VerdictReason(
        CANNOT_JUDGE,
        f"the reference itself hardly tells these people apart: {fact}",
        _WRONG_CONTRACT,
    )


def people_doubts(
    bundle: Bundle,
    reference: Session,
    embeddings: F32,
    faces: Faces,
    names: Sequence[str],
    far: float,
) -> Doubts:
    """Whether labels and input contract are right, as far as faces show it.

    Args:
        bundle: The bundle that is judged.
        reference: Its model.onnx in FP32.
        embeddings: Of the faces by the reference, `(N, D) float32`.
        faces: The N faces.
        names: Of the faces, as a reason may name them.
        far: The FAR that is judged.
    """
    reasons, findings = [], []
    if faces.labelled:
        text, decides = label_doubts(
            embeddings, faces.labels, names, far, synthetic=faces.synthetic
        )
        if decides:
            reasons.append(VerdictReason(CANNOT_JUDGE, text, _CORRECT_LABELS))
        elif text:
            findings.append(text)
    if forced_contract(bundle) is not None:  # it decides by itself
        return Doubts(tuple(reasons), tuple(findings))
    trial = try_contracts(reference, embeddings, faces, bundle.spec)
    if trial.doubt is not None:
        reasons.append(trial.doubt)
    missing = (f"input contract: {trial.not_shown}",) if trial.not_shown else ()
    return Doubts(tuple(reasons), tuple(findings), missing)


def label_doubts(
    embeddings: F32, labels: I64, keys: Sequence[str], far: float, *, synthetic: bool = False
) -> tuple[str, bool]:
    """Whether faces look more like another person than like their own.

    A few do by chance. A few that do by far, with a network that tells the others apart, are in the
    wrong folder; with many, labels and network cannot be told apart.

    Args:
        embeddings: `(N, D) float32`.
        labels: `(N,)`, the faces' people.
        keys: Names of the faces.
        far: The FAR that is judged. Faces in the wrong folder are impostors of their own person, whose
            pairs may be most of those that it accepts.
        synthetic: Whether the labels are right by construction, as synthetic faces' are.

    Returns:
        A sentence, empty where the labels look right, and whether rates on them prove nothing.
    """
    person = np.unique(labels, return_inverse=True)[1]
    count = np.bincount(person)
    several = np.flatnonzero(count[person] > 1)
    if not len(several) or len(count) < 2:
        return "", False
    own, other, nearest = _own_and_other(normalise(embeddings), person, several)
    doubtful = several[other > own]
    share = len(doubtful) / len(several)
    gap = float(np.median(own) - np.median(other))
    sure = other - own > gap / 2
    wrong = several[sure]
    if share < _MIXED_LABELS and gap > 0 and len(wrong) and len(wrong) >= len(doubtful) / 2:
        text = (
            f"labels: {len(wrong)} of {len(several)} faces look like another person by far, "
            f"the first is {keys[wrong[0]]}: "
        )
        if synthetic:
            return text + "the network confuses them, since synthetic labels are right", False
        text += "they lie in the wrong folder"
        impostors = (len(person) ** 2 - int((count**2).sum())) // 2
        accepted, pairs = allowed_impostors(far, impostors), int(count[nearest[sure]].sum())
        if pairs >= _MANY_ACCEPTED * accepted:
            text += (
                f", and as impostors they make up to {pairs} of the {accepted} pairs that set the"
                f" threshold at FAR {far:g}"
            )
            return text, True
        return text, len(wrong) >= _MANY_WRONG * len(several)
    if share < _MIXED_LABELS:
        return "", False
    text = (
        f"labels: {share:.0%} of the faces look more like another person than like their own "
        f"(the first is {keys[doubtful[0]]}): labels are mixed up, or the reference network does "
        "not know these people"
    )
    return text, True


def forced_contract(bundle: Bundle) -> VerdictReason | None:
    """Whether the last export found the input contract wrong, and was forced to take it.

    Args:
        bundle: An open bundle.

    Returns:
        A reason for CANNOT JUDGE, or None.
    """
    for entry in reversed(bundle.history):
        check = entry.get("summary", {}).get("contract")
        if entry.get("stage") == "export" and isinstance(check, Mapping):
            if check.get("right") is not False:
                return None
            return VerdictReason(
                CANNOT_JUDGE,
                f"the input contract ({bundle.spec.describe()}) is not the one of the network's"
                " training, as export found; it was forced",
                "export again with the contract that export named",
            )
    return None


def try_contracts(
    reference: Session, embeddings: F32, faces: Faces, spec: InputSpec
) -> ContractTrial:
    """Whether the reference separates people better under another input contract than the bundle's.

    Args:
        reference: model.onnx in FP32.
        embeddings: Of the faces by the reference under the bundle's contract, `(N, D) float32`.
        faces: The N faces, of known people.
        spec: The bundle's input contract.

    Returns:
        A doubt where another contract leads, and what is not shown where it may.
    """
    if faces.synthetic:
        return ContractTrial(not_shown="synthetic faces do not show it")
    picks, labels = _two_faces_each(faces)
    people = len(picks) // 2
    if people < _CONTRACT_PEOPLE:
        return ContractTrial(
            not_shown=f"{people} people have two photographs, {_CONTRACT_PEOPLE} needed to show it"
        )
    images = np.stack([faces.read(index) for index in picks])

    def embed(variant: ContractVariant, rows: I64) -> F32:
        parts = np.array_split(images[rows], -(-len(rows) // _BATCH))
        return np.concatenate([reference.embed_tensor(variant.inputs(part)) for part in parts])

    return compare_contracts(embed, embeddings[picks], labels, spec)


def compare_contracts(
    embed: Callable[[ContractVariant, I64], F32], own: F32, labels: I64, spec: InputSpec
) -> ContractTrial:
    """Whether another input contract is more likely right, by the lead of its d' and its error over people.

    Each usual contract is tried on a few people, the best `_RIVALS` on all.

    Args:
        embed: Contract and rows of the faces -> their embeddings under it, `(R, D) float32`.
        own: Embeddings of two faces of each person under the declared contract, `(2P, D) float32`.
        labels: Identity of each face, `(2P,) int64`, 0..P-1, sorted.
        spec: The declared contract.
    """
    own_sums = pair_sums(own, labels)
    tried = [(pair_sums(rows, labels), v.spec) for v, rows in _rivals(embed, own, labels, spec)]
    rivals = [(sums, contract) for sums, contract in tried if _recognizes(sums)]
    if not rivals:
        hardly = "the network hardly tells these people apart under any"
        # Where none is left the network normalizes what it gets: all contracts are one.
        return ContractTrial(not_shown="" if _recognizes(own_sums) or not tried else hardly)
    leads = [(lead_in_errors(sums, own_sums), d_prime(sums), rival) for sums, rival in rivals]
    errors, other, best = max(leads, key=lambda lead: lead[0])
    people, own_d_prime = len(own) // 2, d_prime(own_sums)
    figures = f"d' {other:.2f} instead of {own_d_prime:.2f}"
    if errors > _LIKELY:
        verb = "is not" if errors > _SHOWN else "may not be"
        text = (
            f"the input contract ({spec.describe()}) {verb} the one of the network's training: with"
            f" {best.describe()} it separates {people} of these people better, {figures}"
        )
        cure = _EXPORT if errors > _SHOWN else f"{MORE_PEOPLE}; {_FIND}"
        return ContractTrial(VerdictReason(CANNOT_JUDGE, text, cure))
    if errors > -_SHOWN:
        text = (
            f"{people} people do not show whether {spec.describe()} is right or {best.describe()}"
        )
        return ContractTrial(not_shown=f"{text} ({figures}); {_FIND}")
    return ContractTrial()


def _recognizes(sums: PairSums) -> bool:
    """Whether a contract may be the one of the training: people are told apart, and far apart."""
    return d_prime(sums) >= SEPARATES and mean_impostor(sums) < _ALIKE


def _rivals(
    embed: Callable[[ContractVariant, I64], F32], own: F32, labels: I64, spec: InputSpec
) -> Iterator[tuple[ContractVariant, F32]]:
    """The contracts that separate a few of the people best, and the embeddings of all of them."""
    people = int(labels[-1]) + 1
    scouts = np.isin(labels, np.linspace(0, people - 1, min(_SCOUTED, people // 3)).astype(int))
    few, rest = np.flatnonzero(scouts), np.flatnonzero(~scouts)
    others = [v for v in contract_variants(spec) if v.view == "upright" and v.spec != spec]
    scouted = {variant: embed(variant, few) for variant in others}
    person = np.unique(labels[few], return_inverse=True)[1].astype(np.int64)
    scores = {variant: d_prime(pair_sums(rows, person)) for variant, rows in scouted.items()}
    distinct = [own[few]]
    for variant in sorted(others, key=lambda variant: -scores[variant]):
        mine = scouted[variant]
        if max(float(cosines(mine, rows).mean()) for rows in distinct) >= _SAME_INPUT:
            continue
        rows = np.empty((len(labels), mine.shape[1]), np.float32)
        rows[few], rows[rest] = mine, embed(variant, rest)
        yield variant, rows
        distinct.append(mine)
        if len(distinct) > _RIVALS:
            return


def _two_faces_each(faces: Faces) -> tuple[list[int], I64]:
    """Two faces of each of at most `_CONTRACT_TRIED` people, and whose they are, 0, 0, 1, 1, ..."""
    by_person = np.argsort(faces.labels, kind="stable")
    starts = np.flatnonzero(np.diff(faces.labels[by_person], prepend=-1))
    counts = np.diff(starts, append=len(by_person))
    firsts = starts[counts > 1]
    firsts = firsts[np.linspace(0, len(firsts) - 1, min(len(firsts), _CONTRACT_TRIED)).astype(int)]
    picks = by_person[np.stack([firsts, firsts + 1], axis=1).reshape(-1)]
    return [int(pick) for pick in picks], np.repeat(np.arange(len(firsts)), 2)


def _own_and_other(unit: F32, person: I64, several: I64) -> tuple[F32, F32, I64]:
    """Cosines of faces with their own people's mean, without the face itself, and with the most
    similar other person's mean, and who that is."""
    sums = np.zeros((int(person.max()) + 1, unit.shape[1]), np.float32)
    np.add.at(sums, person, unit)
    means = normalise(sums)
    own, other, nearest = [], [], []
    for start in range(0, len(several), 1024):
        part = several[start : start + 1024]
        scores = unit[part] @ means.T
        scores[np.arange(len(part)), person[part]] = -2
        own.append(cosines(unit[part], sums[person[part]] - unit[part]))
        other.append(scores.max(axis=1))
        nearest.append(scores.argmax(axis=1))
    return np.concatenate(own), np.concatenate(other), np.concatenate(nearest)
