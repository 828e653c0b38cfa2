"""`fr-edge distill`: a teacher's knowledge into a small network, or a teacher from scratch."""

import os

import click

from . import options
from .command import define_command
from .output import Output


@define_command(
    "distill",
    example="fr-edge distill tiny --faces synthetic:40x8 --teacher t.bundle --out s.bundle",
)
@click.argument("recipe", metavar="RECIPE")
@options.faces(required=True, what="Training faces, one folder per identity")
@click.option("--teacher", metavar="FILE", help="A bundle, an ONNX file or a checkpoint.")
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle to write.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint that BUNDLE holds.")
def command(
    output: Output,
    recipe: str,
    faces: str,
    teacher: str | None,
    out: str,
    changes: tuple[str, ...],
    resume: bool,
) -> None:
    """Train a student, or a teacher, as RECIPE says.

    RECIPE is a .toml file, or the name of a shipped one. Checkpoints are kept while it trains.
    """
    options.require_torch("training needs torch")
    from ..distill.recipe import read_recipe
    from ..distill.train import distill_student

    bundle = distill_student(
        read_recipe(recipe, changes),
        options.load_faces(faces),
        out,
        teacher=teacher,
        resume=resume,
        track=output.track,
        notify=output.note,
    )
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process speaks for all
        return
    summary = dict(bundle.history[-1].get("summary", {}))
    lines = [f"{out}: trained, {bundle.embedding_dim}-d embeddings, {bundle.spec.describe()}"]
    lines += [f"  {key}: {value}" for key, value in summary.items()]
    lines.append(f"next: fr-edge export {out} --out {out}")
    output.result({"bundle": out, **summary}, "\n".join(lines))
