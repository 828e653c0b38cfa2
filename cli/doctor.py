"""`fr-edge doctor`: what this machine can run, and what is in the way; and what a network expects."""

import click

from ..cli import options
from .output import Output, table
from .output import command as make


@make("doctor", cls=click.Group, invoke_without_command=True)
@click.option("--self-test", is_flag=True, help="Run a tiny network through every backend.")
def command(output: Output, self_test: bool) -> None:
    """Say what this machine can run.

    Which backends are ready, what the others lack, and what to do about it. Exit code 1 when the
    self-test fails.
    """
    if click.get_current_context().invoked_subcommand:
        return
    from ..documents import to_builtins
    from ..runtime.machine.doctor import examine_system
    from ..runtime.selftest import self_test as try_all

    report = examine_system()
    device = report.device
    tried = try_all() if self_test else []
    lines = [
        f"{device.cpu}, {device.cores} cores, {device.memory_gb:g} GB, {device.os}, {device.arch}",
        f"GPU: {', '.join(device.gpu) or 'none'}",
        f"Python {device.python}; "
        + ", ".join(f"{name} {number}" for name, number in device.packages.items()),
        "",
        table(
            [[n, state.lacks or "ready"] for n, state in report.backends.items()],
            ("backend", "state"),
        ),
    ]
    if tried:
        rows = [[t.backend, t.outcome, t.detail] for t in tried]
        lines += ["", table(rows, ("self-test", "outcome", "what"))]
    lines += ["", *[f"problem: {problem}" for problem in report.problems]]
    document = to_builtins(report) | ({"self_test": to_builtins(tried)} if self_test else {})
    output.result(document, "\n".join(lines).rstrip())
    if any(t.outcome == "failed" for t in tried):
        output.fail_gate("the self-test failed")


@make("preprocess")
@click.argument("source", metavar="SOURCE")
@options.faces(required=True, what="Faces of several people with several images each")
@click.option("--limit", default=160, show_default=True, metavar="N", help="Faces at most.")
def preprocess(output: Output, source: str, faces: str, limit: int) -> None:
    """Find the input contract a network was trained with.

    SOURCE is a bundle or an ONNX file. RGB and BGR, the usual means and stds, layouts and flips are
    tried; the right one separates people best. Exit code 1 when the declared contract is wrong.
    """
    from ..export.preprocessing_search import find_preprocessing

    found = find_preprocessing(
        source, options.open_source(output, faces), limit=limit, track=output.track
    )
    rows = [
        [
            f"{c.d_prime:.2f}",
            f"{c.spec.channels} {c.name}",
            c.view,
            "tie" if c.tied and c is not found.best else "",
        ]
        for c in found.ranking[:10]
    ]
    lines = [
        table(rows, ("d'", "contract", "faces", "")),
        f"{found.images} faces of {found.identities} people: {found.verdict}",
    ]
    output.result(found.to_json(), "\n".join(lines))
    if found.right is False:
        output.fail_gate("the declared input contract is wrong")


assert isinstance(command, click.Group)
command.add_command(preprocess)
