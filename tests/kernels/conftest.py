import pytest

from hybridlm.kernels.native import build


@pytest.fixture(scope="session")
def native() -> None:
    """The native kernels, built into the user's cache: quick when that is done."""
    if build.compiler() is None:
        pytest.skip(build.no_compiler())
    build.build()
