"""The examples of docs/trainers.md run as they stand, each in a namespace with a small model and small data.

What the other pages say is tested by test_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import fusedmix as fm
from conftest import required

DOCS = Path(__file__).parents[1] / "docs" / "trainers.md"
SECTIONS = dict(
    re.findall(
        r"## ([^\n]*)\n.*?```python\n(.*?)```", DOCS.read_text(encoding="utf-8") if DOCS.exists() else "", re.DOTALL
    )
)
pytestmark = [
    pytest.mark.skipif(not DOCS.exists(), reason="an installed package comes without its documentation"),
    pytest.mark.filterwarnings("ignore"),  # the trainers' advice
]


class Pictures(Dataset):
    """What the datasets of Transformers hold."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"pixel_values": torch.full((3, 8, 8), i / 4), "labels": i}


class Classifier(torch.nn.Module):
    """What the models of Transformers return."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 1000)

    def forward(self, pixel_values, labels=None):
        logits = self.head(pixel_values.mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def namespace():
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))
    dataset = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8))
    return {
        "fm": fm,
        "torch": torch,
        "F": F,
        "DataLoader": DataLoader,
        "default_collate": default_collate,
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=4),
        "labels": torch.arange(4),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


def run(section, **names):
    found = namespace() | names
    before = [p.detach().clone() for p in found["model"].parameters()]
    exec(SECTIONS[section], found)
    return found, [not torch.equal(a, b) for a, b in zip(before, found["model"].parameters(), strict=True)]


def test_timm():
    required("timm")
    found, changed = run("timm")
    assert found["targets"].shape == (4, 1000)
    assert any(changed)


def test_torchvision():
    found, _ = run("torchvision's reference training")
    images, targets = next(iter(found["loader"]))
    assert images.shape == (4, 3, 8, 8)
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_any_loop():
    found, _ = run("Any loop")
    assert found["loss"].isfinite()
    assert all(p.grad is not None for p in found["model"].parameters())
    assert not found["model"]._forward_pre_hooks


def test_part_of_the_model():
    found, changed = run("As a part of the model")
    assert found["validation_loss"] == F.cross_entropy(found["model"](found["images"]), found["labels"])
    assert not any(changed)
    assert all(p.grad is not None for p in found["model"].parameters())


def test_manifold_mixup():
    found, _ = run("Manifold Mixup")
    assert all(p.grad.isfinite().all() for p in found["model"].parameters())


def test_embeddings():
    found, _ = run("Token embeddings and regression")
    assert found["embeddings"].shape == (4, 12, 16)
    assert found["targets"].shape == (4, 1000)
    assert found["scores"].shape == (4,)


def test_lightning(tmp_path):
    lightning = required("lightning")

    class LightningClassifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 1000)

        def forward(self, images):
            return self.head(images.mean((2, 3)))

        def validation_step(self, batch, batch_idx):
            images, labels = batch
            assert labels.ndim == 1
            F.cross_entropy(self(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    found, _ = run("Lightning", LightningClassifier=LightningClassifier, quiet=quiet)
    assert found["trainer"].global_step == 2


def test_transformers(tmp_path):
    transformers = required("transformers")
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    _, changed = run("Transformers", model=Classifier(), args=args, train_dataset=Pictures(), eval_dataset=Pictures())
    assert all(changed)


def test_accelerate():
    required("accelerate")
    _, changed = run("Accelerate")
    assert any(changed)


def test_from_bytes():
    pictures = TensorDataset(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8))
    found, _ = run("From bytes", loader=DataLoader(pictures, batch_size=4))
    assert found["images"].dtype == torch.uint8
    assert all(p.grad is not None for p in found["model"].parameters())
    normalised = (pictures[4:][0].double() / 255).sub(torch.tensor(found["finish"].normalize[0]).view(3, 1, 1))
    expected = found["model"](normalised.div(torch.tensor(found["finish"].normalize[1]).view(3, 1, 1)).float())
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)


def test_every_example_is_run():
    here = Path(__file__).read_text(encoding="utf-8")
    assert SECTIONS
    assert all(f'"{section}"' in here for section in SECTIONS)
