"""`evaluate`: how well a bundle tells people apart, on a protocol with known answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...bundle import Bundle, change, open_bundle
from ...errors import FacesError
from ...faces.pairs import Pairs
from ...faces.sources import Faces
from ...progress import Track, silent
from ..engines.session import Session, embed_faces, open_judged
from .bootstrap import tar_interval
from .embeddings import check_embeddings
from .identify import Identified, identify
from .metrics import (
    FARS,
    Accuracy,
    Scores,
    all_pairs,
    equal_error_rate,
    far_name,
    listed_pairs,
    pair_accuracy,
    tar_at_far,
    threshold_at_far,
)
from .protocol import draw_pairs, report_name
from .published import legacy_accuracy
from .rates import few_impostors


@dataclass(frozen=True)
class Evaluated:
    """`accuracy` over the folds of the pair list; `tar` and `threshold` by FAR, over all
    `genuine` and `impostor` pairs among the faces, None where these are too few. Where the faces
    have no names (a `.bin` set), the listed pairs are all there are. `legacy` is the accuracy by
    insightface's convention, `intervals` the 95 % intervals of `tar` (bootstrap over people with
    names), `identified` one-to-many search among people with names."""

    engine: str
    backend: str
    protocol: dict[str, Any]
    accuracy: Accuracy
    legacy: Accuracy
    eer: float
    tar: dict[str, float | None]
    threshold: dict[str, float | None]
    genuine: int
    impostor: int
    intervals: dict[str, tuple[float, float]]
    identified: Identified | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "protocol": self.protocol,
            "accuracy": round(self.accuracy.mean, 6),
            "accuracy_std": round(self.accuracy.std, 6),
            "folds": self.accuracy.folds,
            "accuracy_insightface": {
                "mean": round(self.legacy.mean, 6),
                "std": round(self.legacy.std, 6),
            },
            "eer": round(self.eer, 6),
            "tar_at_far": {name: _round(value) for name, value in self.tar.items()},
            "interval_95_at_far": {
                name: [round(end, 6) for end in ends] for name, ends in self.intervals.items()
            },
            "threshold_at_far": {name: _round(value) for name, value in self.threshold.items()},
            "pairs": {"genuine": self.genuine, "impostor": self.impostor},
            "identification": _identification(self.identified),
            "notes": list(self.notes),
            "fr_edge": __version__,
        }


def evaluate(
    bundle: Bundle | str | Path,
    protocol: Pairs | Faces,
    engine: str = "auto",
    backend: str = "auto",
    track: Track = silent,
    *,
    flip: bool = False,
    name: str = "",
) -> Evaluated:
    """Judge an engine on a pair list or a folder of identities.

    Writes `reports/evaluate-ENGINE-NAME.json`; `name` says which protocol it is, so that one does
    not replace another's.

    Accuracy is over the pair list's folds (LFW's protocol; for a folder the list is drawn, seeded),
    TAR at FAR over all pairs among the faces. With `flip` an embedding is the sum of the face's and
    its mirror image's, as papers report; a device that embeds once gets the figures without. Raises
    FacesError when the faces hold no genuine or no impostor pair, ModelError when an embedding is
    zero or not finite.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    listed = isinstance(protocol, Pairs)
    pairs = protocol if isinstance(protocol, Pairs) else draw_pairs(protocol)
    faces = pairs.faces
    session = open_judged(bundle, engine, backend)
    embeddings = _embed(session, bundle, faces, flip, track)
    check_embeddings(embeddings, faces.keys, f"the {session.precision} engine")
    everyone = faces.labelled
    scores = all_pairs(embeddings, faces.labels) if everyone else listed_pairs(embeddings, pairs)
    if not scores.genuine_pairs or not scores.impostor_pairs:
        raise FacesError(
            f"{faces.where} has {scores.genuine_pairs} genuine and {scores.impostor_pairs} "
            "impostor pairs among its faces, expected both",
            "one folder per person: the folder's name is the identity",
        )
    accuracy = pair_accuracy(embeddings, pairs)
    found = Evaluated(
        session.precision,
        session.backend,
        {
            "kind": "pair list" if listed else "identity folder, drawn pairs",
            "pairs": len(pairs),
            "faces": len(faces),
            "identities": faces.identities,
            "drawn": faces.drawn,
            "flip": flip,
            "name": name,
        },
        accuracy,
        legacy_accuracy(embeddings[pairs.first], embeddings[pairs.second], pairs.same),
        equal_error_rate(scores),
        {far_name(far): tar_at_far(scores, far) for far in FARS},
        {far_name(far): threshold_at_far(scores, far) for far in FARS},
        scores.genuine_pairs,
        scores.impostor_pairs,
        _intervals(embeddings, faces, scores) if everyone else {},
        identify(embeddings, faces.labels) if everyone else None,
        tuple(_notes(scores, accuracy, everyone)),
    )
    options = {"engine": session.precision, "backend": session.backend}
    with change(bundle.root, "evaluate", options) as draft:
        draft.drop("report.html")
        report = report_name(session.precision, name, "flip" if flip else "")
        path = draft.path(report, "evaluation")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(accuracy=round(found.accuracy.mean, 6))
    return found


def _embed(
    session: Session, bundle: Bundle, faces: Faces, flip: bool, track: Track
) -> npt.NDArray[np.float32]:
    plain = embed_faces(session, bundle, faces, track, "evaluating")
    if not flip:
        return plain
    mirrored = replace(faces, read=lambda index: np.ascontiguousarray(faces.read(index)[:, ::-1]))
    return plain + embed_faces(session, bundle, mirrored, track, "evaluating mirror images")


def _intervals(
    embeddings: npt.NDArray[np.float32], faces: Faces, scores: Scores
) -> dict[str, tuple[float, float]]:
    labels = np.asarray(faces.labels, np.int64)
    found = tar_interval(embeddings, labels, scores, FARS)
    return {far_name(far): ends for far, ends in found.items()}


def _notes(scores: Scores, accuracy: Accuracy, everyone: bool) -> Iterator[str]:
    if not everyone:
        yield (
            "not measured: all pairs, intervals and one to many, since the pair list alone says "
            "who is who"
        )
    if accuracy.folds < 2:
        yield "one fold alone is judged at its own best threshold: its accuracy flatters"
    yield from (n for far in FARS if (n := few_impostors(scores.impostor_pairs, far)))


def _identification(found: Identified | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "gallery": found.gallery,
        "probes": found.probes,
        "strangers": found.strangers,
        "rank1": _round(found.rank1),
        "tpir_at_fpir": {far_name(fpir): _round(tpir) for fpir, tpir in found.tpir.items()},
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
