"""`fr-edge plan`: what a board will take, said on the host."""

import click

from .output import Output
from .output import command as make


@make("plan")
@click.option(
    "--target",
    required=True,
    metavar="BOARD[@RELEASE]",
    help="Such as orin-nano@jetpack6.2, thor, t4@tensorrt10.13.",
)
def command(output: Output, target: str) -> None:
    """Say what a board or GPU will take, without it.

    Which TensorRT it has, which flavour and precision route it takes, DLA, what will not work and
    what to do, from a table with its sources (docs/targets.md). What is not in the table is
    "unknown", never a guess. Exit code 3 when it will not work, or nobody knows.
    """
    from ..errors import MachineError
    from ..runtime.compatibility import compatibility_of

    found = compatibility_of(target)
    facts = {
        "TensorRT": found.tensorrt,
        "CUDA": found.cuda,
        "Python": found.python,
        "compute capability": found.compute,
        "typing": found.typing,
        "opset": str(found.opset or ""),
        **{f"--{name}": text for name, text in (found.flavours or {}).items()},
        "DLA": found.dla,
    }
    lines = [f"{found.target}: {found.verdict} (as of {found.as_of})"]
    lines += [f"  {name}: {text}" for name, text in facts.items() if text]
    lines += [f"problem: {text}" for text in found.problems]
    lines += [f"{number}. {text}" for number, text in enumerate(found.steps, 1)]
    output.result(found.to_json(), "\n".join(lines))
    if found.verdict != "works":
        click.get_current_context().exit(MachineError.exit_code)
