"""`evaluate`: how well a bundle tells people apart, on a protocol with known answers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._version import __version__
from ...bundle.bundle import open_bundle, transaction
from ...bundle.manifest import Bundle
from ...errors import FacesError
from ...faces.ijb import Ijb, pool_templates, template_cosines
from ...faces.pairs import Pairs
from ...faces.sources import Faces
from ...metrics.accuracy import (
    Accuracy,
    insightface_accuracy,
    nearest_tar,
    pair_accuracy,
)
from ...metrics.identification import IdentificationResult, identify
from ...metrics.intervals import tar_interval
from ...metrics.protocols import draw_pairs
from ...metrics.rates import few_impostors
from ...metrics.verification import (
    FARS,
    Scores,
    all_pairs,
    cosines,
    count_scores,
    equal_error_rate,
    far_name,
    tar_at_far,
    threshold_at_far,
)
from ...progress import Track, silent
from ..session import Artifact, Session, embed_faces, open_session
from .embeddings_file import check_embeddings


@dataclass(frozen=True)
class EvaluateResult:
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
    identified: IdentificationResult | None
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
    artifact: Artifact = "engine",
    flip: bool = False,
    name: str = "",
) -> EvaluateResult:
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
    faces = protocol.faces if isinstance(protocol, Pairs) else protocol
    pairs = protocol if isinstance(protocol, Pairs) else draw_pairs(protocol.labels)
    session = open_session(bundle, engine, backend, artifact=artifact)
    embeddings = _embed(session, faces, flip, track)
    check_embeddings(embeddings, faces.keys, f"the {session.precision} engine")
    everyone = faces.labelled
    if everyone:
        scores = all_pairs(embeddings, faces.labels)
    else:
        listed_cosines = cosines(embeddings[pairs.first], embeddings[pairs.second])
        scores = count_scores(listed_cosines, pairs.same)
    if not scores.genuine_pairs or not scores.impostor_pairs:
        raise FacesError(
            f"{faces.where} has {scores.genuine_pairs} genuine and {scores.impostor_pairs} "
            "impostor pairs among its faces, expected both",
            "one folder per person: the folder's name is the identity",
        )
    accuracy = pair_accuracy(embeddings, pairs)
    found = EvaluateResult(
        session.precision,
        session.backend,
        {
            "kind": "pair list" if listed else "identity folder, sampled pairs",
            "pairs": len(pairs),
            "faces": len(faces),
            "identities": faces.identities,
            "drawn": faces.synthetic,
            "flip": flip,
            "name": name,
        },
        accuracy,
        insightface_accuracy(embeddings[pairs.first], embeddings[pairs.second], pairs.same),
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
    with transaction(bundle.root, "evaluate", options) as draft:
        report = report_name(session.precision, name, "flip" if flip else "")
        path = draft.path(report, "evaluation")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(accuracy=round(found.accuracy.mean, 6))
    return found


def _embed(session: Session, faces: Faces, flip: bool, track: Track) -> npt.NDArray[np.float32]:
    plain = embed_faces(session, faces, track, "evaluating")
    if not flip:
        return plain
    mirrored = replace(faces, read=lambda index: np.ascontiguousarray(faces.read(index)[:, ::-1]))
    return plain + embed_faces(session, mirrored, track, "evaluating mirror images")


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


def _identification(found: IdentificationResult | None) -> dict[str, Any] | None:
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


# `evaluate` on IJB-B or IJB-C: templates of many images instead of single faces.

IJB_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_BATCH = 32


@dataclass(frozen=True)
class IjbResult:
    """`tar` by FAR as the published scripts read it, None where the impostor pairs are fewer than
    1 / FAR; `flags` like N1D1F1 say what was pooled, `notes` what hangs on a handful of pairs."""

    engine: str
    backend: str
    flags: str
    images: int
    templates: int
    genuine: int
    impostor: int
    tar: dict[str, float | None]
    name: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "protocol": {
                "kind": "IJB 1:1",
                "flags": self.flags,
                "images": self.images,
                "templates": self.templates,
                "name": self.name,
            },
            "tar_at_far": {
                name: None if tar is None else round(tar, 6) for name, tar in self.tar.items()
            },
            "pairs": {"genuine": self.genuine, "impostor": self.impostor},
            "notes": list(self.notes),
            "fr_edge": __version__,
        }


def evaluate_ijb(
    bundle: Bundle | str | Path,
    ijb: Ijb,
    engine: str = "auto",
    backend: str = "auto",
    track: Track = silent,
    *,
    artifact: Artifact = "engine",
    norm: bool = True,
    detector: bool = True,
    flip: bool = True,
    name: str = "ijb",
) -> IjbResult:
    """TAR at FAR 1e-6 to 1e-1 over the template pairs; writes `reports/evaluate-ENGINE-NAME-FLAGS.json`.

    The flags are those of `ijb.py`. Memory holds templates, never all images' embeddings.
    Raises FacesError for a damaged image, ModelError when an embedding is zero or not finite.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    session = open_session(bundle, engine, backend, artifact=artifact)
    batches = _embed_templates(session, ijb, flip, track)
    templates, numbers = pool_templates(batches, ijb, norm=norm, detector=detector)
    tar = nearest_tar(template_cosines(templates, numbers, ijb), ijb.same, IJB_FARS)
    impostor = int((~ijb.same).sum())
    found = IjbResult(
        session.precision,
        session.backend,
        f"N{norm:d}D{detector:d}F{flip:d}",
        len(ijb.faces),
        len(templates),
        int(ijb.same.sum()),
        impostor,
        {
            far_name(far): value if impostor * far >= 1 else None
            for far, value in zip(IJB_FARS, tar, strict=True)
        },
        name,
        tuple(note for far in IJB_FARS if (note := few_impostors(impostor, far))),
    )
    options = {"engine": session.precision, "backend": session.backend, "flags": found.flags}
    with transaction(bundle.root, "evaluate IJB", options) as draft:
        report = report_name(session.precision, name, found.flags)
        path = draft.path(report, "evaluation")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    return found


def _embed_templates(
    session: Session, ijb: Ijb, flip: bool, track: Track
) -> Iterator[npt.NDArray[np.float32]]:
    steps = (len(ijb.faces) + _BATCH - 1) // _BATCH
    done = 0
    for batch in track(ijb.faces.batches(_BATCH), "evaluating", steps):
        out = session.embed(batch)
        if flip:
            out = out + session.embed(batch[:, :, ::-1])
        check_embeddings(
            out, ijb.faces.keys[done : done + len(out)], f"the {session.precision} engine"
        )
        done += len(out)
        yield out


# What an identity folder is judged on: a seeded pair list in folds that share no identity.
#
# All pairs give TAR at FAR; accuracy needs as many genuine as impostor pairs, and these are them.

_NO_NAME = re.compile(r"[^A-Za-z0-9_.]+")


def report_name(precision: str, *parts: str) -> str:
    """`reports/evaluate-int8-lfw.json`: each protocol keeps its own report."""
    named = (_NO_NAME.sub("-", part).strip("-.") for part in parts)
    return f"reports/evaluate-{'-'.join([precision, *filter(None, named)])}.json"
