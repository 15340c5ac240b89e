"""The README's examples run as they stand, one after the other, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="an installed package comes without its README")
def test_examples():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    x, labels, batch_size = torch.rand(4, 3, 224, 224), torch.tensor([0, 1, 2, 3]), 4
    namespace = {
        "torch": torch,
        "loader": [(x, labels)],
        "model": torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)),
        "x": x,
        "labels": labels,
        "batch_size": batch_size,
        "logits": torch.randn(4, 1000),
    }
    exec(blocks[0], namespace)
    mixer = namespace["mixer"]
    assert namespace["targets"].shape == (4, 1000)
    assert namespace["targets"].dtype == torch.float32
    assert namespace["loss"].isfinite()
    before = x.clone()
    exec(blocks[1], namespace)
    assert torch.equal(namespace["x2"], x)  # by then mixed in place
    assert not torch.equal(x, before)
    smooth = torch.nn.functional.cross_entropy(namespace["logits"], namespace["t"])
    assert smooth.isfinite()
    assert namespace["loss"].isfinite()
    namespace |= {"mean": (0.5,) * 3, "std": (0.25,) * 3, "uint8_images": (255 * x).byte()}
    exec(blocks[2], namespace)
    assert namespace["images"].dtype == torch.bfloat16
    assert namespace["targets"].shape == (4, 1000)
    namespace["mixer"] = mixer
    exec(blocks[3], namespace)
    assert namespace["loss"].isfinite()
