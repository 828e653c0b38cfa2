"""What a person asks of a model file: size, operators, cost, contract."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..faces.contract import InputSpec
from .cost import Layer, layers
from .foreign import contract_in, read_onnx


@dataclass(frozen=True)
class Facts:
    """An ONNX file; `contract` is None where the file carries none. `size` in bytes."""

    file: str
    size: int
    opset: int
    ir_version: int
    producer: str
    contract: InputSpec | None
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one face."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_by_precision(self) -> dict[str, int]:
        count: Counter[str] = Counter()
        for layer in self.layers:
            if layer.macs:
                count[layer.precision] += layer.macs
        return dict(count)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "size": self.size,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "input": self.contract.to_json() if self.contract else None,
            "parameters": self.parameters,
            "macs": self.macs,
            "macs_by_precision": self.macs_by_precision,
            "operators": dict(Counter(layer.op for layer in self.layers)),
            "layers": [asdict(layer) for layer in self.layers],
        }


def read_facts(path: str | Path) -> Facts:
    """The facts of an ONNX file, ours or somebody's; raises ModelError when it is none."""
    path = Path(path)
    model = read_onnx(path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    return Facts(
        path.name,
        path.stat().st_size,
        opset,
        model.ir_version,
        f"{model.producer_name} {model.producer_version}".strip(),
        contract_in(model),
        tuple(layers(model)),
    )
