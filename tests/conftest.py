"""Shared by all tests: the smoke preset, and no writing into the checkout."""
import os

import pytest
import torch

os.environ.setdefault("SEPNB_PRESET", "smoke")
torch.set_num_threads(1)


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    "An empty artifacts folder in place of the checkout's."
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"
