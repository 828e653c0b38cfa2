"""`fr-edge pairs`: a list of pairs to judge on."""

import click

from . import options
from .command import define_command
from .output import Output


@define_command("pairs", example="fr-edge pairs --faces faces/judging --out drawn.csv")
@options.faces(what="Faces of people, a folder for each", required=True)
@click.option("--out", required=True, metavar="FILE.csv", help="The list to write.")
@click.option(
    "--folds",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="Disjoint by people.",
)
@click.option(
    "--per-fold",
    type=click.IntRange(1, 100_000),
    default=300,
    show_default=True,
    help="Genuine pairs in a fold, at most; as many impostor pairs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which pairs.")
def command(output: Output, faces: str, out: str, folds: int, per_fold: int, seed: int) -> None:
    """Draw a list of pairs of faces to judge on.

    It has as many impostor as genuine pairs, in folds that share no person.

    The list has the columns fold, path1, path2, same; `fr-edge verify` and `evaluate` take it with
    the same faces. The same faces and seed give the same pairs.
    """
    from pathlib import Path

    import numpy as np

    from ..errors import FacesError
    from ..faces.pair_lists import encode_pairs
    from ..files import write_atomic
    from ..metrics.protocols import draw_pairs

    source = options.load_faces(faces)
    if not source.labelled:
        raise FacesError(f"{faces} does not tell who is who", "give faces in a folder per person")
    drawn = draw_pairs(source.labels, folds, per_fold, seed)
    ends = np.sort(np.stack([drawn.first, drawn.second], 1), axis=1)
    once = np.sort(np.unique(ends, axis=0, return_index=True)[1])  # few people: some come again
    fold, same = drawn.fold[once], drawn.same[once]
    text = encode_pairs(source.keys, fold, drawn.first[once], drawn.second[once], same)
    write_atomic(Path(out), text)
    count, genuine, folds = len(same), int(same.sum()), int(fold.max()) + 1
    output.result(
        {"file": out, "pairs": count, "genuine": genuine, "folds": folds},
        f"{out}: {genuine} genuine and {count - genuine} impostor pairs in {folds} folds\n"
        f"next: fr-edge verify BUNDLE --pairs {out} --faces {faces}",
    )
