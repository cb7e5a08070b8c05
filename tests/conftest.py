"""Shared fixtures. This folder is on sys.path while tests run, so `standin` can be imported from all of them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
