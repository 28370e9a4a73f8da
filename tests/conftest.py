import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Two pytest workers share two cores; results of one machine stay the same bit for bit.
    torch.set_num_threads(1)
