import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Matrices this small are not worth a second thread; on a busy machine threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
