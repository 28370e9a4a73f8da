import pytest

from tests.optim.cases import OPTIMIZERS, Make


@pytest.fixture(params=OPTIMIZERS)
def make(request: pytest.FixtureRequest) -> Make:
    cls, options = OPTIMIZERS[request.param]
    return lambda params, **more: cls(params, **options, **more)
