"""`fr-edge demo`: the whole job on synthetic faces, with nothing simulated but the faces."""

import click

from . import options
from .command import define_command
from .output import Output, table


@define_command("demo", example="fr-edge demo --out demo")
@click.option("--out", default="demo", show_default=True, metavar="DIR", help="Where to work.")
def command(output: Output, out: str) -> None:
    """Run the whole job on synthetic faces, in minutes, on a CPU.

    Teacher -> student -> ONNX -> INT8 engine -> verification. No data is needed. Finished stages are
    not repeated when the command is run again. Exit code 1 when the student or an engine fails a
    gate.
    """
    options.require_torch("the demo trains with torch")
    from ..documents import to_builtins
    from .demo_stages import run_demo

    result = run_demo(out, output)
    rows = [[s.stage, s.made, s.figure, f"{s.seconds:.0f} s"] for s in result.stages]
    gates = [["pass" if g.passed else "FAIL", g.name, g.text] for g in result.gates]
    lines = [
        table(rows, ("stage", "result", "figure", "time")),
        "",
        table(gates),
        "",
        f"report: {result.report}",
        "PASSED" if result.passed else "FAILED",
    ]
    output.result(to_builtins(result), "\n".join(lines))
    if not result.passed:
        output.fail_gate("a gate of the demo failed")
