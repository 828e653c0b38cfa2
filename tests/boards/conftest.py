"""What the tests of boards share: the doubles in C, built once."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from compiled import COMPILER, NO_COMPILER, build_driver  # noqa: E402
from tiny_network import bundle, faces, tiny  # noqa: E402, F401


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver's double; the test skips without a C compiler."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    return build_driver(tmp_path_factory.mktemp("driver")).parent
