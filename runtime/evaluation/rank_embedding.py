"""A large set of faces embedded by several processes, with the bits that one process would give.

Each process embeds whole batches of its own share; the first one receives the others' embeddings and
goes on alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ...arrays import F32, U8
from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...bundle.provenance import ImageDigests, with_digests
from ...faces.embedding_log import FaceEmbedder, logged_embedder
from ...faces.ijb import Ijb
from ...faces.pairs import Pairs
from ...faces.sources import Faces
from ...progress import Track, silent
from ..session import Artifact, Session, open_session
from .limits import with_policy_signatures
from .rank_exchange import ALONE, BATCH, RankShare, exchange_parts


def embedded_batches(
    session: FaceEmbedder,
    faces: Faces,
    identity: tuple[str, ...],
    *,
    flip: bool = False,
    ranks: RankShare = ALONE,
    digests: ImageDigests | None = None,
    track: Track = silent,
    label: str = "embedding",
) -> Iterator[F32]:
    """Embed a source of faces on rank 0, with what the other ranks embed.

    Args:
        session: An open session.
        faces: N faces.
        identity: What embeddings depend on besides the pixels, as `logged_embedder` takes it.
        flip: Whether the mirror image's embedding is added.
        ranks: Rank 0 of how many.
        digests: Of the images of `faces`; those that other ranks read are added.
        track: Shows progress of this rank's share.
        label: The progress bar's text.

    Returns:
        Embeddings in the order of the source, `(n, D) float32` at a time.

    Raises:
        MachineError: The cache folder cannot be used.
        RankLost: Another rank failed, died, or has not begun.
        Interrupted: As `logged_embedder`.
    """
    own = ranks.range(len(faces))
    share = faces if ranks.size == 1 else faces.subset(own)
    with (
        exchange_parts(faces, (*identity, f"flip {flip}"), ranks) as parts,
        _logged(session, share, identity, flip) as embed,
    ):
        for batch in track(share.batches(BATCH), label, -(-len(share) // BATCH)):
            parts.check()
            yield embed(batch)
        for rank in range(1, ranks.size):
            yield from parts.receive(rank, ranks.range(len(faces), rank), session.dim, digests)
        parts.release()


def embed_share(
    session: FaceEmbedder,
    faces: Faces,
    identity: tuple[str, ...],
    *,
    flip: bool = False,
    ranks: RankShare,
    digests: ImageDigests | None = None,
) -> None:
    """Embed the share of a rank other than 0, and wait until rank 0 has received it.

    Args:
        session: As `embedded_batches`.
        faces: As `embedded_batches`: all N, the same on every rank.
        identity: As `embedded_batches`.
        flip: As `embedded_batches`.
        ranks: A rank from 1 of how many.
        digests: Of the images of `faces`, to which this share's are added as they are read.

    Raises:
        MachineError: The cache folder cannot be used.
        RankLost: Rank 0 failed, died, or has not begun.
        Interrupted: As `logged_embedder`.
    """
    own = ranks.range(len(faces))
    share = faces.subset(own)
    with (
        exchange_parts(faces, (*identity, f"flip {flip}"), ranks) as parts,
        _logged(session, share, identity, flip) as embed,
    ):
        with parts.part() as write:
            for batch in share.batches(BATCH):
                parts.check()
                write(embed(batch).astype("<f4").tobytes())
            if digests is not None:
                write(b"".join(digests.by_index[index] for index in own))
        parts.hand_over()  # until then the log keeps what is embedded


def evaluate_share(
    bundle: Bundle | str | Path,
    protocol: Pairs | Faces | Ijb,
    engine: str = "auto",
    backend: str = "auto",
    *,
    artifact: Artifact = "engine",
    flip: bool = False,
    policy: Path | None = None,
    ranks: RankShare,
) -> None:
    """Embed a share of what `evaluate` or `evaluate_ijb` judges on rank 0.

    Args:
        bundle: As they take it, and so are the others.
        protocol: What is judged: a pair list, faces, or IJB.
        engine: The engine's name.
        backend: The backend's name.
        artifact: "engine" or "graph".
        flip: Whether the mirror image's embedding is added.
        policy: Decides whether signatures are required.
        ranks: A rank from 1 of how many.

    Raises:
        FrEdgeError: What they and `embed_share` raise.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    faces = protocol if isinstance(protocol, Faces) else protocol.faces
    faces, digests = with_digests(faces.sized(bundle.spec.crop_side))
    with open_session(bundle, engine, backend, artifact=artifact) as session:
        identity = judged_identity(session)
        embed_share(session, faces, identity, flip=flip, ranks=ranks, digests=digests)


def judged_identity(session: Session) -> tuple[str, ...]:
    """What the embeddings of an engine that is judged depend on, besides the pixels.

    Args:
        session: An open session of the engine.
    """
    return session.sha256, session.backend, "evaluated"


@contextmanager
def _logged(
    session: FaceEmbedder, share: Faces, identity: tuple[str, ...], flip: bool
) -> Iterator[Callable[[U8], F32]]:
    """What embeds a batch, and keeps it if the work is interrupted."""
    with ExitStack() as logs:
        plain = logs.enter_context(logged_embedder(session, share, *identity))
        if not flip:
            yield plain.embed
            return
        mirror = logs.enter_context(logged_embedder(session, share, *identity, "mirrored"))
        yield (
            lambda batch: plain.embed(batch) + mirror.embed(np.ascontiguousarray(batch[:, :, ::-1]))
        )
