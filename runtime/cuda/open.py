"""Open the GPU with the driver package that is installed."""

from ...errors import MachineError
from ..machine.device import find_gpus
from .interface import Cuda


def open_cuda() -> Cuda:
    """The first GPU; raises MachineError with what is missing."""
    if lack := find_gpus().lack:
        raise MachineError(lack, "run this on a machine with an NVIDIA GPU; see `fr-edge doctor`")
    from .cuda_python import open_cuda_python
    from .pycuda_driver import open_pycuda

    said = []
    for open_one in (open_pycuda, open_cuda_python):
        try:
            return open_one()
        except ImportError as error:
            said.append(str(error))
    raise MachineError(
        f"there is a GPU, but no package to use it: {'; '.join(said)}",
        "pip install pycuda, or pip install cuda-python; `fr-edge doctor` knows what a build needs",
    )
