"""`fr-edge check`: will this plan load here? Answered without loading it."""

import click

from .output import Output
from .output import command as make


@make("check")
@click.argument("plan", metavar="FILE.plan")
def command(output: Output, plan: str) -> None:
    """Say if a TensorRT plan will load here, before it does.

    The plan's header and its sidecar (FILE.plan.json) are read; nothing of it is run. Exit code 3
    when it will not load on this machine, 4 when it is no plan or damaged.
    """
    from ..errors import DataError, MachineError
    from ..runtime.trt.plan_file import check_plan

    found = check_plan(plan)
    said = "will not load here" if found.problems else "should load here"
    lines = [f"{plan}: {found.backend} {found.version}, {said}"]
    lines += [f"  {problem}" for problem in found.problems]
    if found.problems and found.hint:
        lines.append(f"  {found.hint}")
    output.result(found.to_json(), "\n".join(lines))
    if found.problems:
        error = DataError if found.damaged else MachineError
        click.get_current_context().exit(error.exit_code)
