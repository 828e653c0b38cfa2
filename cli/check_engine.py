"""`fr-edge check-engine`: whether a TensorRT plan will load here, without loading it."""

import click

from .command import define_command
from .output import Output


@define_command(
    "check-engine", example="fr-edge check-engine mine.bundle/engines/tensorrt-int8.plan"
)
@click.argument("plan", metavar="FILE.plan")
def command(output: Output, plan: str) -> None:
    """Check whether a TensorRT plan loads here, without loading it.

    The plan's header and its sidecar (FILE.plan.json) are read; the plan is not run. Exit code 3
    when it will not load on this machine, 4 when it is damaged or not a plan.
    """
    from ..documents import to_builtins
    from ..errors import DataError, MachineError
    from ..runtime.trt.plan_file import check_plan

    check = check_plan(plan)
    verdict = "should load here" if check.loads else "will not load here"
    lines = [f"{plan}: {check.backend} {check.version}, {verdict}"]
    lines += [f"  {problem}" for problem in check.problems]
    if check.hint:
        lines.append(f"  {check.hint}")
    output.result(to_builtins(check), "\n".join(lines))
    if not check.loads:
        error = DataError if check.damaged else MachineError
        click.get_current_context().exit(error.exit_code)
