import pytest
import torch

from amc_mobile.search import ddpg


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_agents(monkeypatch):
    """Agents learn faster with small networks."""
    monkeypatch.setattr(ddpg, "HIDDEN", 16)
    monkeypatch.setattr(ddpg, "BATCH_SIZE", 16)
