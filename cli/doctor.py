"""`fr-edge doctor`: what this machine can run, and what is in the way."""

from copy import copy

import click

from . import options
from .command import HelpPageGroup, define_command
from .find_preprocessing import command as find_preprocessing
from .output import Output, table


@define_command(
    "doctor",
    cls=HelpPageGroup,
    invoke_without_command=True,
    example="fr-edge doctor --self-test",
)
@options.device
@click.option(
    "--self-test",
    is_flag=True,
    help="Build, check, open and run a small network in FP32 and INT8 on every backend.",
)
def command(output: Output, self_test: bool) -> None:
    """Show what this machine can run.

    Which backends are ready, what the others lack, and what to do about it. Exit code 1 when the
    self-test fails.
    """
    if click.get_current_context().invoked_subcommand:
        return
    from ..documents import to_builtins
    from ..runtime.machine.doctor import examine_system
    from ..runtime.selftest import self_test as run_self_test

    report = examine_system()
    device = report.device
    tests = run_self_test() if self_test else []
    untried = "" if self_test else ", not tried: --self-test does"
    states = [
        [name, state.lacks or (f"ready{untried}" if name != "onnxruntime" else "ready")]
        for name, state in report.backends.items()
    ]
    lines = [
        f"{device.cpu}, {device.cores} cores, {device.memory_gb:g} GB, {device.os}, {device.arch}",
        f"GPU: {', '.join(device.gpu) or 'none'}",
        f"Python {device.python}; "
        + ", ".join(f"{name} {number}" for name, number in device.packages.items()),
        "",
        table(states, ("backend", "state")),
    ]
    if tests:
        rows = [[test.backend, test.outcome, test.detail] for test in tests]
        lines += ["", table(rows, ("self-test", "outcome", "detail"))]
    lines += ["", *[f"problem: {problem}" for problem in report.problems]]
    document = to_builtins(report) | ({"self_test": to_builtins(tests)} if self_test else {})
    output.result(document, "\n".join(lines).rstrip())
    if any(test.outcome == "failed" for test in tests):
        output.fail_gate("the self-test failed")


assert isinstance(command, click.Group)
_EARLIER = copy(find_preprocessing)
_EARLIER.deprecated = "use `fr-edge find-preprocessing`."
command.add_command(_EARLIER, "preprocess")
