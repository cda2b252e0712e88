"""What runs only on a GPU. Elsewhere every test here is skipped."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "gpu" and not torch.cuda.is_available():
        raise pytest.UsageError("-m gpu: torch finds no GPU here")
    here = [item for item in items if "/gpu/" in item.nodeid or item.nodeid.startswith("gpu/")]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
