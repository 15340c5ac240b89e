"""MixCallback in real trainings by Lightning: what is mixed, by what labels, and again after resuming."""

from __future__ import annotations

import copy
import importlib
import sys
from collections import UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import fusedmix as fm
from conftest import required
from fusedmix.integrations.positions import mix_at
from trainers import (
    Halving,
    cross_entropies,
    images_and_labels,
    import_without,
    label_weights,
    run_script,
    soft,
    write_script,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice, on workers and on logging

CLASSES = 5
X, Y = images_and_labels(13, CLASSES)  # batches of 4, 4, 4 and 1
BATCHES = list(zip(X.split(4), Y.split(4), strict=True))
Pair = namedtuple("Pair", ["images", "labels"])


@pytest.fixture
def lightning():
    return required("lightning.pytorch")


@pytest.fixture
def callback(lightning):
    from fusedmix.integrations.lightning import MixCallback

    return MixCallback


def collate(structure):
    def function(samples):
        images, labels = (torch.stack(column) for column in zip(*samples, strict=True))
        return {
            "list": [images, labels],
            "dict": {"images": images, "labels": labels},
            "user dict": UserDict(pixels=images, labels=labels),
            "before": UserDict(depth=images[:, :1].float(), image=images, labels=labels),
            "nested": {"id": 3, "views": ([images], {"labels": labels})},
            "tuple": (images, labels),
            "named tuple": Pair(images, labels),
            "tensor": images,
            "labels": {"labels": labels},
        }[structure]

    return function


def parts(batch):
    """The images and labels of a batch."""
    if isinstance(batch, list):
        return tuple(batch)
    if "views" in batch:
        return batch["views"][0][0], batch["views"][1]["labels"]
    key = next(key for key in ("pixels", "image", "images") if key in batch)
    return batch[key], batch["labels"]


def classifier(lightning, dropout=0.0):
    """A module that remembers what every hook saw."""

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            features = X[0].numel()
            layers = (torch.nn.Flatten(), torch.nn.Dropout(dropout), torch.nn.Linear(features, CLASSES))
            self.net = torch.nn.Sequential(*layers).double()
            self.before, self.seen, self.others = [], [], []

        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                self.before.append(tuple(part.clone() for part in parts(batch)))
            return batch

        def training_step(self, batch, batch_idx):
            images, targets = parts(batch)
            logits = self.net(images)
            if isinstance(targets, fm.SparseTargets):
                weight = targets.weight
                own, lent = (F.cross_entropy(logits, y, reduction="none") for y in targets[:2])
                loss = (weight * own + (1 - weight) * lent).mean()
            else:
                loss = F.cross_entropy(logits, targets.double() if targets.ndim == 2 else targets)
            self.seen.append((images.clone(), targets, logits.detach(), loss.detach()))
            return loss

        def validation_step(self, batch, batch_idx):
            stage = "sanity" if self.trainer.sanity_checking else "validation"
            self.others.append((stage, *parts(batch)))

        def test_step(self, batch, batch_idx):
            self.others.append(("test", *parts(batch)))

        def predict_step(self, batch, batch_idx):
            self.others.append(("predict", *parts(batch)))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    return Classifier()


def trainer(lightning, callbacks, tmp_path, **options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    return lightning.Trainer(callbacks=callbacks, **{**defaults, **options})


def loader(structure="list", shuffle=False):
    return DataLoader(TensorDataset(X, Y), 4, shuffle=shuffle, collate_fn=collate(structure))


class Batches:
    """The batches in order, which a training may leave and enter in the middle; the same objects in every epoch."""

    def __init__(self):
        self.batches, self.first, self.at = [list(batch) for batch in BATCHES], 0, 0

    def __iter__(self):
        first, self.first = self.first, 0
        for n in range(first, len(self)):
            self.at = n + 1
            yield self.batches[n]

    def __len__(self):
        return len(self.batches)

    def state_dict(self):
        return {"at": self.at % len(self)}

    def load_state_dict(self, state):
        self.first = state["at"]


def check_step(before, seen):
    """Labels and loss of one step by hand, from the images before and after."""
    (x, y), (images, targets, logits, loss) = before, seen
    weights = label_weights(images, x)
    expected = soft(y, weights, CLASSES)
    if isinstance(targets, fm.SparseTargets):
        assert torch.equal(targets.labels, y)
        assert torch.equal(targets.partner_labels, y.roll(1))
        if len(x) > 1:
            torch.testing.assert_close(targets.weight, weights, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, cross_entropies(logits, expected).mean(), rtol=0, atol=1e-5)
    return weights


def same(runs, others):
    assert len(runs) == len(others) > 0
    for run, other in zip(runs, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(run, other, strict=True))


@pytest.mark.parametrize(
    ("method", "structure", "options"),
    [
        (fm.MixUp, "list", {}),
        (fm.CutMix, "dict", {"inplace": True}),
        (fm.CutMix, "list", {"sampling": "device"}),
        (fm.MixUp, "user dict", {"targets": "sparse"}),
        (fm.CutMix, "before", {}),
        (fm.CutMix, "nested", {"targets": "sparse", "per": "sample"}),
        (fm.MixUp, "nested", {"images_getter": lambda batch: batch["views"][0][0]}),
    ],
)
def test_training_is_mixed_and_nothing_else(lightning, callback, tmp_path, method, structure, options):
    if structure == "nested":
        options = {**options, "labels_getter": lambda batch: batch["views"][1]["labels"]}
    mix = method(num_classes=CLASSES, **options)
    model, loaders = classifier(lightning), loader(structure, shuffle=True)
    run = trainer(lightning, [callback(mix)], tmp_path, max_epochs=2, accumulate_grad_batches=2)
    torch.manual_seed(1)
    run.fit(model, loaders, loader(structure))
    run.test(model, loader(structure), verbose=False)
    run.predict(model, loader(structure), return_predictions=False)

    assert [len(x) for x, _ in model.before] == [4, 4, 4, 1] * 2
    drawn = [check_step(*step)[0].item() for step in zip(model.before, model.seen, strict=True)]
    assert len({round(w, 9) for w in drawn[:3] + drawn[4:7]}) > 3, "batches share a draw"
    stages = ["sanity"] * 2 + ["validation"] * 8 + ["test"] * 4 + ["predict"] * 4
    assert [stage for stage, *_ in model.others] == stages
    same([rest for _, *rest in model.others], [*BATCHES[:2], *BATCHES * 4])
    assert mix.generator is None


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_bytes_are_finished(lightning, callback, tmp_path, structure):
    """In training by the pass that mixes them, elsewhere alone; weights are those of the same training by hand."""
    finish = fm.Finish(((0.4, 0.5), (0.2, 0.3)), hflip=0.5, erase=fm.Erase(0.5, value="pixel"))
    mix = fm.CutMix(num_classes=CLASSES, finish=finish)
    given = (X * 255).round().to(torch.uint8)
    batches = list(zip(given.split(4), Y.split(4), strict=True))

    class OfBytes(type(classifier(lightning))):
        def training_step(self, batch, batch_idx):
            images, targets = parts(batch)
            assert images.dtype == torch.float32
            self.seen.append((images.clone(), targets))
            return F.cross_entropy(self.net(images), targets)

    model = OfBytes()
    model.net.float()
    by_hand = copy.deepcopy(model.net)
    loaders = DataLoader(TensorDataset(given, Y), 4, collate_fn=collate(structure))
    alone = DataLoader(TensorDataset(given), 4)  # to predict on, without labels
    run = trainer(lightning, [callback(mix, seed=7)], tmp_path, max_epochs=2, accumulate_grad_batches=2)
    run.fit(model, loaders, loaders)
    run.test(model, loaders, verbose=False)
    run.predict(model, loaders, return_predictions=False)
    model.predict_step = lambda batch, batch_idx: model.others.append(("alone", batch[0], None))
    run.predict(model, alone, return_predictions=False)

    optimizer, n = torch.optim.SGD(by_hand.parameters(), 0.5), 0
    for epoch in range(2):
        for batch_idx, (x, y) in enumerate(batches):
            images, targets = mix_at(mix, (x, y), 7, 0, epoch, batch_idx)
            assert torch.equal(model.before[n][0], x)
            assert torch.equal(model.seen[n][0], images)
            assert torch.equal(model.seen[n][1], targets)
            (F.cross_entropy(by_hand(images), targets) / 2).backward()
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()
            n += 1
    torch.testing.assert_close(model.net[2].weight, by_hand[2].weight, rtol=0, atol=1e-6)
    stages = ["sanity"] * 2 + ["validation"] * 8 + ["test"] * 4 + ["predict"] * 4 + ["alone"] * 4
    assert [stage for stage, *_ in model.others] == stages
    for (stage, images, labels), (x, y) in zip(model.others, [*batches[:2], *batches * 5], strict=True):
        assert torch.equal(images, fm.finish(x, finish))
        assert stage == "alone" or torch.equal(labels, y)


@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        ("tuple", TypeError, r"must hold them in a list or a dict, but got a tuple.*fusedmix\.finish"),
        ("tensor", TypeError, r"must hold them in a list or a dict, but got a Tensor.*fusedmix\.finish"),
        ("no images", ValueError, "must hold images to be finished, but got a dict without any"),
    ],
)
def test_what_cannot_be_finished(lightning, callback, tmp_path, structure, error, message):
    mixing = callback(fm.MixUp(num_classes=CLASSES, finish=fm.Finish(None)))
    loaders = loader(structure if structure != "no images" else "labels")
    with pytest.raises(error, match=message):
        trainer(lightning, [mixing], tmp_path).validate(classifier(lightning), loaders, verbose=False)


def test_draws_leave_torch_alone(lightning, callback, tmp_path):
    """Dropout and the order of the batches are those of a training without mixing."""

    def states(callbacks):
        lightning.seed_everything(5, verbose=False)
        model = classifier(lightning, dropout=0.5)
        trainer(lightning, callbacks, tmp_path, max_epochs=1).fit(model, loader(shuffle=True))
        return torch.get_rng_state(), [labels for _, labels in model.before]

    (mixed, order), (plain, plain_order) = states([callback(fm.CutMix(num_classes=CLASSES))]), states([])
    assert torch.equal(mixed, plain)
    assert all(torch.equal(a, b) for a, b in zip(order, plain_order, strict=True))


@pytest.mark.parametrize("options", [{}, {"sampling": "device", "per": "sample", "pairing": "random"}])
def test_resuming(lightning, callback, tmp_path, options):
    """From the end of an epoch and from the middle of one: the batches, losses and weights of an uninterrupted run."""

    def training(seed, ckpt_path=None):
        lightning.seed_everything(seed, verbose=False)
        model, mix = classifier(lightning), fm.MixUp(alpha=9, num_classes=CLASSES, **options)
        schedule = Halving(mix, 4.0 if ckpt_path is None else 99.0)
        saves = lightning.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1, save_last=False
        )
        saves_epochs = lightning.callbacks.ModelCheckpoint(tmp_path, filename="end-{epoch}", save_top_k=-1)
        run = trainer(
            lightning,
            [callback(mix, schedule=schedule), saves, saves_epochs],
            tmp_path,
            max_epochs=3,
            enable_checkpointing=True,
        )
        run.fit(model, Batches(), ckpt_path=ckpt_path)
        return model, schedule, mix

    whole, schedule, mix = training(7)
    assert schedule.epochs == [0, 1, 2]
    assert mix.alpha == 1.0
    assert len(whole.seen) == 12
    for name, done in (("step=3", 3), ("step=6", 6), ("end-epoch=0", 4), ("end-epoch=1", 8)):
        rest, schedule, _ = training(8, tmp_path / f"{name}.ckpt")
        same(rest.seen, whole.seen[done:])
        assert schedule.epochs == sorted({step // 4 for step in range(done, 12)})
        assert schedule.base_alphas == [4.0]
        assert torch.equal(rest.net[2].weight, whole.net[2].weight)


def test_the_seed(lightning, callback, tmp_path):
    """One seed, one sequence of batches: torch's, unless the callback is given one."""

    def seen(torch_seed, seed=None):
        lightning.seed_everything(torch_seed, verbose=False)
        model, mix = classifier(lightning), fm.CutMix(num_classes=CLASSES)
        trainer(lightning, [callback(mix, seed=seed)], tmp_path, max_epochs=1).fit(model, Batches())
        return torch.cat([images for images, *_ in model.seen])

    assert torch.equal(seen(1), seen(1))
    assert torch.equal(seen(1, 3), seen(2, 3))
    assert torch.equal(seen(1), seen(2, 1))
    assert not torch.equal(seen(1), seen(2))


RANKS = """
    import sys
    import torch, torch.distributed as dist, torch.nn.functional as F
    import lightning.pytorch as L
    import fusedmix as fm
    from fusedmix.integrations.lightning import MixCallback

    X, Y = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = torch.nn.Linear(48, 4), []

        def training_step(self, batch, batch_idx):
            images, targets = batch
            loss = F.cross_entropy(self.net(images.flatten(1)), targets)
            self.seen.append(torch.cat([targets.flatten(), loss.detach().flatten()]))
            return loss

        def on_train_end(self):
            mine = torch.stack(self.seen)
            torch.save((mine, self.net.weight.detach()), f"{sys.argv[1]}/{RUN}-{self.global_rank}.pt")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 4)

    def train(epochs, ckpt_path=None):
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=epochs, logger=False,
            use_distributed_sampler=False,  # both ranks train on the same images: only what is drawn differs
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
            callbacks=[
                MixCallback(fm.MixUp(num_classes=4)),
                L.callbacks.ModelCheckpoint(sys.argv[1], filename=f"{RUN}-{{epoch}}", save_top_k=-1),
            ],
        )
        trainer.fit(Classifier(), ckpt_path=ckpt_path)

    L.seed_everything(3)
    RUN = "whole"
    train(3)
    L.seed_everything(4)
    RUN = "rest"
    train(3, f"{sys.argv[1]}/whole-epoch=0.ckpt")
"""


@pytest.mark.thorough
def test_two_ranks(lightning, tmp_path):
    """Seeded alike, two ranks mix differently, train the same weights, and go on as they would have."""
    run_script(write_script(tmp_path / "ranks.py", RANKS), tmp_path)
    (whole, weight), (other, other_weight) = (torch.load(tmp_path / f"whole-{rank}.pt") for rank in range(2))
    assert whole.shape == (6, 17)  # three epochs of two batches on each rank
    assert all(not torch.equal(a[:16], b[:16]) for a, b in zip(whole, other, strict=True))
    assert torch.equal(weight, other_weight)
    for rank, uninterrupted in enumerate((whole, other)):
        rest, resumed = torch.load(tmp_path / f"rest-{rank}.pt")
        assert torch.equal(rest, uninterrupted[2:])
        assert torch.equal(resumed, weight)


def test_pytorch_lightning(monkeypatch, tmp_path):
    """The same callback under the package's other name."""
    pytorch_lightning = required("pytorch_lightning")
    for name in [name for name in sys.modules if name == "lightning" or name.startswith("lightning.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fusedmix.integrations.lightning", raising=False)
    integration = importlib.import_module("fusedmix.integrations.lightning")
    assert issubclass(integration.MixCallback, pytorch_lightning.Callback)
    model = classifier(pytorch_lightning)
    mixing = integration.MixCallback(fm.CutMix(num_classes=CLASSES))
    trainer(pytorch_lightning, mixing, tmp_path, max_epochs=1).fit(model, loader(), loader())
    for step in zip(model.before, model.seen, strict=True):
        check_step(*step)
    same([rest for _, *rest in model.others], [*BATCHES[:2], *BATCHES])
    monkeypatch.delitem(sys.modules, "fusedmix.integrations.lightning")


@pytest.mark.parametrize("structure", ["tuple", "named tuple", "tensor"])
def test_immutable_batches(lightning, callback, tmp_path, structure):
    """An error that says what to do, before anything is drawn or written."""
    mix = fm.MixUp(num_classes=CLASSES, inplace=True, **({"labels_getter": None} if structure == "tensor" else {}))
    seen, model = [], classifier(lightning)
    model.on_after_batch_transfer = lambda batch, dataloader_idx: seen.append(batch) or batch
    with pytest.raises(TypeError, match=r"must hold them in a list or a dict, but got a (tuple|Pair|Tensor).*collate"):
        trainer(lightning, [callback(mix)], tmp_path, max_epochs=1).fit(model, loader(structure))
    assert torch.equal(seen[0] if structure == "tensor" else seen[0][0], X[:4])


def test_dataloader_iter(lightning, callback, tmp_path):
    class Fetches(type(classifier(lightning))):
        def training_step(self, dataloader_iter):
            raise AssertionError("not reached")

    with pytest.raises(TypeError, match=r"training_step\(dataloader_iter\)"):
        trainer(lightning, [callback(fm.MixUp(num_classes=CLASSES))], tmp_path, max_epochs=1).fit(Fetches(), loader())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mix": torch.nn.Identity()}, TypeError, "mix must be a mixing module such as .*, but got Identity"),
        ({"mix": fm.CutMix(generator=torch.Generator())}, ValueError, "mix must have generator=None"),
        ({"seed": 1.5}, TypeError, "seed must be an int, but got 1.5"),
        ({"schedule": 3}, TypeError, r"schedule must be None, or .* with step\(epoch\), but got int"),
        ({"schedule": [Halving(fm.MixUp(), 1), 3]}, TypeError, "but got int"),
    ],
)
def test_errors(callback, arguments, error, message):
    with pytest.raises(error, match=message):
        callback(**{"mix": fm.CutMix(), **arguments})


def test_without_lightning(monkeypatch):
    message = import_without(monkeypatch, "lightning", "lightning", "lightning.pytorch", "pytorch_lightning")
    assert "pip install lightning" in message
