"""A plan that was stripped gets its weights back, from the network it was compiled from.

Never run on a GPU by this project so far, like the session that calls it.
"""

from typing import TYPE_CHECKING, Any

from ...errors import MachineError

if TYPE_CHECKING:
    import tensorrt


def refit(trt: Any, engine: "tensorrt.ICudaEngine", log: Any, network: bytes, name: str) -> None:
    """Put the weights of an ONNX `network` into an engine, in place; `name` is the plan's.

    Raises MachineError where this TensorRT cannot, or does not find its weights in the network.
    """
    again = "build the engine again without --strip-weights"
    if not hasattr(trt, "OnnxParserRefitter"):
        raise MachineError(
            f"{name} holds no weights, and this TensorRT, {trt.__version__}, cannot add them", again
        )
    refitter: tensorrt.Refitter = trt.Refitter(engine, log)
    parser: tensorrt.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(network) or not refitter.refit_cuda_engine():
        said = " ".join(log.problems)[:400] or f"missing: {refitter.get_missing_weights()[:3]}"
        raise MachineError(f"TensorRT cannot put the weights into {name}: {said}", again)
