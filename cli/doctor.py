"""`fr-edge doctor`: what this machine can run, and what is in the way."""

from .output import Output, table
from .output import command as make


@make("doctor")
def command(output: Output) -> None:
    """Say what this machine can run.

    Which backends are ready, what the others lack, and what to do about it.
    """
    from ..runtime.doctor import examine

    found = examine()
    document = found.to_json()
    device = found.device
    rows = [[name, lack or "ready"] for name, lack in found.backends.items()]
    lines = [
        f"{device.cpu}, {device.cores} cores, {device.memory_gb:g} GB, {device.os}, {device.arch}",
        f"GPU: {', '.join(device.gpu) or 'none'}",
        f"Python {device.python}; "
        + ", ".join(f"{name} {number}" for name, number in device.packages.items()),
        "",
        table(rows, ("backend", "state")),
    ]
    lines += ["", *[f"problem: {problem}" for problem in found.problems]]
    output.result(document, "\n".join(lines).rstrip())
