"""`fr-edge targets`: what a board or GPU will take, answered on the host."""

import click

from .command import define_command
from .output import Output


@define_command("targets", example="fr-edge targets --target orin-nano@jetpack6.2")
@click.option(
    "--target",
    required=True,
    metavar="BOARD[@RELEASE]",
    help="Such as orin-nano@jetpack6.2, thor, t4@tensorrt10.13, rtx-40@tensorrt-rtx1.7.",
)
def command(output: Output, target: str) -> None:
    """Show what a board or GPU will take, without having it.

    Its TensorRT, the flavour and precisions to build, DLA, what will not work and what to do, from
    a table with sources (docs/targets.md). What the table lacks is "unknown", never guessed. Exit
    code 3 when it will not work or is unknown.
    """
    from ..documents import to_builtins
    from ..errors import MachineError
    from ..runtime.compatibility import compatibility_of

    result = compatibility_of(target)
    facts = {
        "TensorRT": result.tensorrt,
        "CUDA": result.cuda,
        "Python": result.python,
        "compute capability": result.compute,
        "typing": result.typing,
        "opset": str(result.opset or ""),
        **{f"--{name}": text for name, text in (result.flavours or {}).items()},
        "FP8": result.fp8,
        "DLA": result.dla,
    }
    lines = [f"{result.target}: {result.verdict} (as of {result.as_of})"]
    lines += [f"  {name}: {text}" for name, text in facts.items() if text]
    lines += [f"problem: {text}" for text in result.problems]
    lines += [f"{number}. {text}" for number, text in enumerate(result.steps, 1)]
    output.result(to_builtins(result), "\n".join(lines))
    if result.verdict != "works":
        click.get_current_context().exit(MachineError.exit_code)
