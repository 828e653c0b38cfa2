"""`fr-edge demo`: the whole job on drawn faces, on parts that are all real."""

import click

from .command import define_command
from .output import Output, table


@define_command("demo", example="fr-edge demo --out demo")
@click.option("--out", default="demo", show_default=True, metavar="DIR", help="Where to work.")
def command(output: Output, out: str) -> None:
    """Run the whole job on drawn faces, in minutes, on a CPU.

    Teacher -> student -> ONNX -> INT8 engine -> proof.
    Faces are drawn, so no data is needed. Interrupt it when you like: finished stages are not
    repeated. Exit code 1 when the student or an engine is not good enough.
    """
    from .demo_stages import run_demo

    done = run_demo(out, output)
    rows = [[s.stage, s.made, s.figure, f"{s.seconds:.0f} s"] for s in done.stages]
    gates = [["pass" if g.passed else "FAIL", g.name, g.text] for g in done.gates]
    text = "\n".join(
        [
            table(rows, ("stage", "what came out", "figure", "time")),
            "",
            table(gates),
            "",
            f"report: {done.report}",
            "PASSED" if done.passed else "FAILED",
        ]
    )
    output.result(done.to_json(), text)
    if not done.passed:
        output.fail_gate("a gate of the demo failed")
