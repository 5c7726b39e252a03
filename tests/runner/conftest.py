from __future__ import annotations

from pathlib import Path

import pytest
from bench_models import build_fake_library
from host_runner import build_host_runner


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host_runner()


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_library(tmp_path_factory.mktemp("fake") / "libfake.so")
