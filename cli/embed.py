"""`fr-edge embed`: faces to embeddings, in a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .output import Output

if TYPE_CHECKING:
    from ..bundle.manifest import Bundle
    from ..export.torch_network import TorchWeights
    from ..runtime.session import Session


@define_command(
    "embed",
    example="fr-edge embed mine.bundle --faces faces/judging --out embeddings.npz",
    option_groups={
        "Engine": ("--engine", "--backend", "--device", "--require-signature", "--trust")
    },
)
@options.bundle
@options.faces()
@options.photos(what="In place of --faces")
@click.option("--out", required=True, metavar="FILE.npz", help="The file to write.")
@options.engine()
@options.device
@options.require_signature
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, onnxruntime, tensorrt, tensorrt-rtx, or torch: the PyTorch weights themselves.",
)
def command(
    output: Output,
    bundle: str,
    faces: str | None,
    photos: str | None,
    out: str,
    engine: str,
    backend: str,
) -> None:
    """Embed all faces of SRC into a file.

    FILE.npz holds `embeddings (N, D) float32`, `keys`, `labels` and `origin`: what made them.
    Embeddings are as the network gives them, and biometric data: keep the file as you keep faces.
    With `--backend torch` it is the reference that `fr-edge verify --reference` compares with.
    Processes that torchrun starts (RANK and WORLD_SIZE) share the faces, and rank 0 writes the file.
    """
    import numpy as np

    from ..bundle.bundle import open_bundle
    from ..faces.quality import faces_for
    from ..runtime.evaluation.embeddings_file import origin_of, write_embeddings
    from ..runtime.evaluation.rank_embedding import embed_share, embedded_batches

    if bool(faces) == bool(photos):
        raise click.UsageError("give --faces SRC or --photos DIR")
    ranks = options.rank_share(photos)
    opened = open_bundle(bundle)
    if photos:
        device = "auto" if backend == "torch" else backend
        source, _ = options.photograph_faces(opened, photos, device, output)
    else:
        source = options.load_faces(faces or "")
    source = faces_for(source, opened.spec)
    session = _session(opened, engine, backend)
    origin = origin_of(opened, session.precision, session.backend)
    engine_sha256 = getattr(session, "sha256", "")  # PyTorch's weights are in the origin
    identity = str(origin.models), engine_sha256, session.backend
    if ranks.rank:
        embed_share(session, source, identity, ranks=ranks)
        return
    batches = embedded_batches(session, source, identity, ranks=ranks, track=output.track)
    embeddings = np.concatenate(list(batches))
    write_embeddings(Path(out), source.keys, source.labels, embeddings, origin)
    count, dim = embeddings.shape
    document = {
        "file": out,
        "faces": count,
        "dim": dim,
        "identities": source.identities,
        "engine": session.precision,
        "backend": session.backend,
        "models": origin.models,
    }
    output.result(
        document,
        f"{out}: {count} embeddings of {dim} numbers, {session.precision} on {session.backend}",
    )


def _session(bundle: "Bundle", engine: str, backend: str) -> "Session | TorchWeights":
    if backend != "torch":
        from ..runtime.session import open_session

        return open_session(bundle, engine, backend)
    if engine not in ("auto", "fp32"):
        raise click.UsageError("the PyTorch weights are fp32: leave --engine out")
    from ..export.torch_network import open_torch_weights

    return open_torch_weights(bundle)
