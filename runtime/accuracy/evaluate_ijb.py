"""`evaluate` on IJB-B or IJB-C: templates of many images instead of single faces."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...bundle import Bundle, change, open_bundle
from ...faces.contract import preprocess
from ...progress import Track, silent
from ..engines.session import Session, open_judged
from .embeddings import check_embeddings
from .ijb import Ijb, pair_scores, pool
from .metrics import far_name
from .protocol import report_name
from .published import nearest_tar
from .rates import few_impostors

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_BATCH = 32


@dataclass(frozen=True)
class IjbEvaluated:
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
    norm: bool = True,
    detector: bool = True,
    flip: bool = True,
    name: str = "ijb",
) -> IjbEvaluated:
    """TAR at FAR 1e-6 to 1e-1 over the template pairs; writes `reports/evaluate-ENGINE-NAME-FLAGS.json`.

    The flags are those of `ijb.py`. Memory holds templates, never all images' embeddings.
    Raises FacesError for a damaged image, ModelError when an embedding is zero or not finite.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    session = open_judged(bundle, engine, backend)
    batches = _embed(session, bundle, ijb, flip, track)
    templates, numbers = pool(batches, ijb, norm=norm, detector=detector)
    tar = nearest_tar(pair_scores(templates, numbers, ijb), ijb.same, FARS)
    impostor = int((~ijb.same).sum())
    found = IjbEvaluated(
        session.precision,
        session.backend,
        f"N{norm:d}D{detector:d}F{flip:d}",
        len(ijb.faces),
        len(templates),
        int(ijb.same.sum()),
        impostor,
        {
            far_name(far): value if impostor * far >= 1 else None
            for far, value in zip(FARS, tar, strict=True)
        },
        name,
        tuple(note for far in FARS if (note := few_impostors(impostor, far))),
    )
    options = {"engine": session.precision, "backend": session.backend, "flags": found.flags}
    with change(bundle.root, "evaluate IJB", options) as draft:
        draft.drop("report.html")
        report = report_name(session.precision, name, found.flags)
        path = draft.path(report, "evaluation")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    return found


def _embed(
    session: Session, bundle: Bundle, ijb: Ijb, flip: bool, track: Track
) -> Iterator[npt.NDArray[np.float32]]:
    steps = (len(ijb.faces) + _BATCH - 1) // _BATCH
    done = 0
    for batch in track(ijb.faces.batches(_BATCH), "evaluating", steps):
        out = session.embed(preprocess(batch, bundle.spec))
        if flip:
            out = out + session.embed(preprocess(batch[:, :, ::-1], bundle.spec))
        check_embeddings(
            out, ijb.faces.keys[done : done + len(out)], f"the {session.precision} engine"
        )
        done += len(out)
        yield out
