"""What a benchmark's line is called, in its text, its report and a comparison."""

from collections.abc import Mapping
from typing import Any


def run_label(run: Mapping[str, Any]) -> str:
    """Of a run's JSON: the batch, and beside it what is not the default. An earlier version's has
    no rate, or neither threads nor streams."""
    label = f"batch {run['batch']}"
    label += f", threads {run['threads']}" if run.get("threads") else ""
    label += f", streams {run['streams']}" if (run.get("streams") or 1) > 1 else ""
    return label + (f", {run['rate']} queries/s" if run.get("rate") else "")
