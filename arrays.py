"""Names for numpy array types in signatures; shapes stand in each function's Args."""

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

F32 = npt.NDArray[np.float32]

I32 = npt.NDArray[np.int32]

U32 = npt.NDArray[np.uint32]

I64 = npt.NDArray[np.int64]

F16 = npt.NDArray[np.float16]

U8 = npt.NDArray[np.uint8]
