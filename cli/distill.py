"""`fr-edge distill`: a teacher's knowledge into a small network, or a teacher from scratch."""

import os
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .output import Output

if TYPE_CHECKING:
    from ..distill.training_report import TrainingReport


@define_command(
    "distill",
    example="fr-edge distill tiny --faces synthetic:40x8 --teacher t.bundle --out s.bundle",
    option_groups={"Another training at the same place": ("--resume", "--force")},
)
@click.argument("recipe", metavar="RECIPE")
@options.faces(required=True, what="Training faces, one folder per identity")
@click.option("--teacher", metavar="FILE", help="A bundle, an ONNX file or a checkpoint.")
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle to write.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--resume", is_flag=True, help="For scripts: unfinished trainings go on anyway.")
@click.option("--force", is_flag=True, help="Replace what BUNDLE holds; train a finished one anew.")
def command(
    output: Output,
    recipe: str,
    faces: str,
    teacher: str | None,
    out: str,
    changes: tuple[str, ...],
    resume: bool,
    force: bool,
) -> None:
    """Train a student, or a teacher, as RECIPE says.

    RECIPE is a .toml file, or the name of a shipped one. Ctrl-C and SIGTERM keep a checkpoint, and
    one is kept every few minutes; the same command goes on from it. A finished training is not
    repeated.
    """
    options.require_torch("training needs torch")
    from ..distill.recipe import read_recipe
    from ..distill.train import distill_student
    from ..documents import to_builtins

    result = distill_student(
        read_recipe(recipe, changes),
        options.load_faces(faces),
        out,
        teacher=teacher,
        force=force,
        track=output.track,
    )
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process prints for all
        return
    bundle, report = result.bundle, result.report
    names = ("images", "identities", "accuracy", "teacher_accuracy", "seconds")
    document = {"bundle": out, **{name: getattr(report, name) for name in names}}
    if not result.trained:
        output.note(f"{out} holds this training, finished; nothing was changed")
    lines = [
        f"{out}: trained, {bundle.embedding_dim}-d embeddings, {bundle.spec.describe()}",
        f"  {report.images:,} images of {report.identities:,} people in {report.seconds:,.0f} s,"
        f" {report.images_per_s:,.0f} images/s",
        f"  {_accuracy_text(report)}",
        f"next: fr-edge export {out} --out {out}",
    ]
    output.result(to_builtins(document), "\n".join(lines))


def _accuracy_text(report: "TrainingReport") -> str:
    if report.accuracy is None:
        return "accuracy: not measured, without people to verify on"
    parts = [f"accuracy on people not trained on: {report.accuracy:.2%}"]
    if report.untrained_accuracy is not None:
        parts.append(f"{report.untrained_accuracy:.2%} untrained")
    if report.teacher_accuracy is not None:
        parts.append(f"the teacher's {report.teacher_accuracy:.2%}")
    return ", ".join(parts)
