"""Gates on people: each judges the figure it names, and what cannot be shown is not guessed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import UsageError
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import Faces
from fr_edge.metrics.protocols import PairList, draw_pairs
from fr_edge.runtime.evaluation.evaluate import evaluate
from fr_edge.runtime.evaluation.gates import Gate
from fr_edge.runtime.evaluation.result import VerifyResult
from fr_edge.runtime.evaluation.verify import verify


def _gate(result: VerifyResult, start: str) -> Gate:
    return next(gate for gate in result.gates if gate.name.startswith(start))


def test_every_gate_that_was_asked_for(mini: Path, distinct: Faces) -> None:
    pairs = Pairs(distinct, **vars(draw_pairs(distinct.labels)))
    result = verify(
        mini, "fp32", artifact="graph", pairs=pairs, far=1e-2, max_tar_drop=0.1, min_tar=0.5,
        min_accuracy=0.6, max_eer=0.2, min_kept_tar=0.5, max_kept_far=0.1, max_stratum_drop=0.1,
    )  # fmt: skip
    # 13 people bound no FAR from above; all else they show.
    unbounded = _gate(result, "FAR at the threshold kept")
    assert unbounded.interval_95 is not None
    assert unbounded.interval_95[1] == 1
    assert unbounded.verdict == result.verdict == "CANNOT JUDGE"
    assert {gate.verdict for gate in result.gates if gate != unbounded} == {"PASSED"}
    rate = result.tar["1e-2"]
    assert result.accuracy is not None
    assert result.curves is not None
    values = {
        "TAR at FAR 1e-2": rate.engine,
        "TAR at the threshold kept": rate.threshold_kept.tar,
        "FAR at the threshold kept": rate.threshold_kept.far,
        "equal error rate": result.curves.engine.eer,
        "10-fold accuracy": result.accuracy.engine,
    }
    for start, value in values.items():
        gate = _gate(result, start)
        assert gate.value == value
        assert gate.interval_95 is not None
        assert gate.interval_95[0] <= gate.value <= gate.interval_95[1]
    assert "worst stratum" in _gate(result, "TAR drop at FAR 1e-2 of").name
    strict = verify(mini, "fp32", artifact="graph", pairs=pairs, far=1e-2, max_kept_far=1e-3)
    assert strict.verdict == "FAILED"
    assert _gate(strict, "FAR at the threshold kept").verdict == "FAILED"


def test_gates_without_people_cannot_be_judged(mini: Path) -> None:
    result = verify(
        mini, "fp32", artifact="graph", min_tar=0.5, min_accuracy=0.6, max_eer=0.2,
        min_kept_tar=0.5, max_kept_far=0.1, max_stratum_drop=0.1,
    )  # fmt: skip
    assert result.verdict == "CANNOT JUDGE"
    assert len(result.reasons) == 6
    assert all(reason.cure for reason in result.reasons)


def test_few_people_cannot_be_judged(mini: Path, distinct: Faces) -> None:
    few = replace(distinct, keys=distinct.keys[:20], labels=distinct.labels[:20])
    result = verify(mini, "fp32", artifact="graph", faces=few, far=1e-1)
    assert result.verdict == "CANNOT JUDGE"
    assert "too few people" in result.reasons[0].reason


def test_a_list_without_names_has_intervals_over_its_folds(mini: Path, distinct: Faces) -> None:
    """As a .bin set: thousands of pairs, and no word who is who."""
    unnamed = replace(distinct, labelled=False)
    drawn = draw_pairs(distinct.labels)
    result = verify(mini, "fp32", artifact="graph", pairs=Pairs(unnamed, **vars(drawn)), far=1e-1)
    rate = result.tar["1e-1"]
    assert rate.interval_95 is not None
    assert rate.interval_95.delta[0] < 0 < rate.interval_95.delta[1]
    assert _gate(result, "TAR drop").interval_95 is not None


@pytest.mark.parametrize("same", [True, False])
def test_a_list_of_genuine_or_of_impostor_pairs_alone(
    same: bool, mini: Path, distinct: Faces
) -> None:
    drawn = draw_pairs(distinct.labels)
    rows = drawn.same == same
    some = PairList(drawn.fold[rows], drawn.first[rows], drawn.second[rows], drawn.same[rows])
    pairs = Pairs(replace(distinct, labelled=False), **vars(some))
    result = verify(mini, "fp32", artifact="graph", pairs=pairs)
    assert result.verdict == "CANNOT JUDGE"
    assert all(reason.cure for reason in result.reasons)


def test_a_list_of_one_person_cannot_be_judged(mini: Path, distinct: Faces) -> None:
    one = replace(distinct, keys=distinct.keys[:4], labels=distinct.labels[:4])
    first, second = np.triu_indices(4, 1)
    same = np.ones(6, bool)
    pairs = Pairs(one, np.zeros(6, np.int64), first.astype(np.int64), second.astype(np.int64), same)
    result = verify(mini, "fp32", artifact="graph", pairs=pairs)
    assert result.verdict == "CANNOT JUDGE"


def test_the_accuracy_of_a_single_fold_cannot_be_judged(mini: Path, distinct: Faces) -> None:
    # It is judged at its own best threshold, where ten folds would pass the same limit.
    pairs = Pairs(distinct, **vars(draw_pairs(distinct.labels)))
    single = replace(pairs, fold=np.zeros_like(pairs.fold))
    for listed, wanted in ((pairs, "PASSED"), (single, "CANNOT JUDGE")):
        result = verify(mini, "fp32", artifact="graph", pairs=listed, far=1e-2, min_accuracy=0.6)
        assert _gate(result, "10-fold accuracy").verdict == wanted
        judged = evaluate(mini, listed, "fp32", artifact="graph", min_accuracy=0.6)
        assert judged.verdict == wanted
    assert "best threshold" in judged.reasons[0].reason
    assert "ten folds" in judged.reasons[0].cure


def test_evaluate_is_judged_only_when_asked(mini: Path, distinct: Faces) -> None:
    plain = evaluate(mini, distinct, "fp32", artifact="graph")
    assert (plain.verdict, plain.passed, plain.gates) == (None, None, ())
    judged = evaluate(
        mini, distinct, "fp32", artifact="graph", min_accuracy=0.6, max_eer=0.2, min_tar=0.5,
        far=1e-2,
    )  # fmt: skip
    assert (judged.verdict, judged.passed, judged.reasons) == ("PASSED", True, ())
    assert [gate.value for gate in judged.gates] == [
        judged.tar_at_far["1e-2"], judged.accuracy, judged.eer,
    ]  # fmt: skip
    default = evaluate(mini, distinct, "fp32", artifact="graph", min_tar=0.5)
    assert (default.verdict, default.passed) == ("CANNOT JUDGE", False)
    assert "100,000 impostor pairs" in default.reasons[0].cure
    with pytest.raises(UsageError, match="fraction"):
        evaluate(mini, distinct, "fp32", artifact="graph", max_eer=2)


def test_evaluate_and_verify_take_their_tables_of_the_policy(
    mini: Path, distinct: Faces, tmp_path: Path
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        "max_tar_drop = 0.5\n[evaluate]\nmin_accuracy = 0.6\n[evaluate.fp32]\nmax_eer = 0.3\n"
    )
    assert verify(mini, "fp32", artifact="graph", faces=distinct, policy=file).passed
    result = evaluate(mini, distinct, "fp32", artifact="graph")
    assert [gate.limit for gate in result.gates] == [0.6, 0.3]
    assert result.passed
