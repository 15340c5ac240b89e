"""MixTrainer in real trainings by Transformers: what is mixed, which loss it gets, and again after resuming."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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

pytestmark = pytest.mark.filterwarnings("ignore")  # of pinned memory without a GPU

CLASSES = 5
X, Y = images_and_labels(11, CLASSES, side=8)  # batches of 4, 4 and 3
X = X.float()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, one_hot=False):
        self.labels = F.one_hot(Y, CLASSES).float() if one_hot else Y

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"labels": self.labels[i], "pixel_values": X[i]}


class Plain(torch.nn.Module):
    """A model that takes no keywords for its loss, so that the Trainer scales the loss for gradient accumulation."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(dropout), torch.nn.Linear(X[0].numel(), CLASSES)
        )

    def forward(self, pixel_values, labels=None):
        logits = self.layers(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def transformers():
    return required("transformers")


@pytest.fixture
def vit(transformers):
    def build(dropout=0.0, problem_type=None):
        config = transformers.ViTConfig(
            image_size=8, patch_size=4, num_channels=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, num_labels=CLASSES, hidden_dropout_prob=dropout, problem_type=problem_type,
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config)

    return build


@pytest.fixture
def arguments(transformers, tmp_path):
    def build(**options):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "num_train_epochs": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "learning_rate": 0.01,
        }
        return transformers.TrainingArguments(**{**defaults, **options})

    return build


@pytest.fixture
def remembering(transformers):
    """MixTrainer that remembers its batches: before mixing, what the model saw and said, and the losses."""
    from fusedmix.integrations.transformers import MixTrainer

    class Remembering(MixTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.trained, self.evaluated = [], []
            self.model.register_forward_hook(self._remember, with_kwargs=True)

        def _remember(self, model, args, kwargs, outputs):
            self._saw = (kwargs["pixel_values"].clone(), "labels" in kwargs, outputs["logits"].detach())

        def training_step(self, model, inputs, num_items_in_batch=None):
            self._in_training, before = True, {key: value.clone() for key, value in inputs.items()}
            scaled = super().training_step(model, inputs, num_items_in_batch)
            self._in_training = False
            self.trained.append((before["pixel_values"], before["labels"], *self._saw, scaled))
            return scaled

        def compute_loss(self, model, inputs, *args, **kwargs):
            before = (inputs["pixel_values"].clone(), inputs["labels"].clone())
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not self.__dict__.get("_in_training"):
                self.evaluated.append((*before, *self._saw, (loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    return Remembering


def check_training(trained, accumulate, smoothing=0.0):
    """Every loss by hand: the sum of the batch over the samples of the whole accumulated step."""
    sizes = [len(step[0]) for step in trained]
    for n, (x, y, images, labelled, logits, scaled) in enumerate(trained):
        start = n - n % 3 % accumulate  # three batches an epoch
        samples = sum(sizes[start : min(start + accumulate, n - n % 3 + 3)])
        assert not labelled, "the model was given labels, and chooses a loss"
        y = y.argmax(1) if y.ndim == 2 else y
        targets = soft(y, label_weights(images.double(), x.double()), CLASSES)
        expected = cross_entropies(logits, targets, smoothing).sum() / samples
        torch.testing.assert_close(scaled.double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("method", "options", "one_hot", "accumulate", "smoothing"),
    [
        (fm.MixUp, {}, False, 1, 0.0),
        (fm.CutMix, {"inplace": True}, False, 2, 0.0),
        (fm.CutMix, {"targets": "sparse"}, False, 2, 0.1),
        (fm.MixUp, {"sampling": "device"}, True, 2, 0.1),
        (fm.CutMix, {"targets": "sparse"}, True, 1, 0.0),
    ],
)
def test_training_is_mixed_and_nothing_else(
    remembering, vit, arguments, method, options, one_hot, accumulate, smoothing
):
    mix = method(num_classes=CLASSES, alpha=2.0, **options)
    args = arguments(
        gradient_accumulation_steps=accumulate, label_smoothing_factor=smoothing, num_train_epochs=2,
        eval_strategy="epoch" if not one_hot else "no",
    )  # fmt: skip
    trainer = remembering(vit(), args, train_dataset=Pictures(one_hot), eval_dataset=Pictures(), mix=mix)
    trainer.train()
    assert [len(step[0]) for step in trainer.trained] == [4, 4, 3] * 2
    check_training(trainer.trained, accumulate, smoothing)
    weights = [label_weights(step[2].double(), step[0].double())[0].item() for step in trainer.trained]
    assert len({round(w, 4) for w in weights}) > 3, "batches share a draw"

    before = len(trainer.evaluated)
    trainer.evaluate()
    trainer.predict(Pictures())
    assert before == (0 if one_hot else 6)
    assert len(trainer.evaluated) == before + 6
    for n, (x, y, images, _, logits, loss) in enumerate(trainer.evaluated):
        start = n % 3 * 4
        assert torch.equal(images, X[start : start + 4])
        assert torch.equal(x, images)
        assert torch.equal(y, Y[start : start + 4])
        expected = cross_entropies(logits, F.one_hot(y, CLASSES), smoothing).mean()
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-5)
    assert trainer.model.config.problem_type in (None, "single_label_classification")
    assert mix.generator is None


def test_bytes_are_finished(remembering, arguments):
    """In training by the pass that mixes them, elsewhere alone, with labels or without."""
    finish = fm.Finish(((0.4, 0.5), (0.2, 0.3)), hflip=0.5, erase=fm.Erase(0.5, value="pixel"))
    mix, given = fm.CutMix(num_classes=CLASSES, finish=finish), (X * 255).round().to(torch.uint8)

    class Bytes(Pictures):
        def __getitem__(self, i):
            return {"labels": self.labels[i], "pixel_values": given[i]}

    class Unlabelled(Pictures):
        def __getitem__(self, i):
            return {"pixel_values": given[i]}

    args = arguments(gradient_accumulation_steps=2, remove_unused_columns=False, eval_strategy="epoch")
    trainer = remembering(Plain(), args, train_dataset=Bytes(), eval_dataset=Bytes(), mix=mix, mix_seed=7)
    trainer.train()
    assert [len(step[0]) for step in trainer.trained] == [4, 4, 3]
    for n, (x, y, images, _, logits, scaled) in enumerate(trainer.trained):
        expected, targets = mix_at(mix, (x, y), 7, 0, *divmod(n, 2))
        assert x.dtype == torch.uint8
        assert torch.equal(images, expected)
        loss = cross_entropies(logits, targets.double()).mean() / (2, 2, 1)[n]
        torch.testing.assert_close(scaled.double(), loss, rtol=0, atol=1e-5)

    assert len(trainer.evaluated) == 3
    trainer.predict(Bytes())
    for n, (_, y, images, _, logits, loss) in enumerate(trainer.evaluated):
        start = n % 3 * 4
        assert torch.equal(images, fm.finish(given[start : start + 4], finish))
        assert torch.equal(y, Y[start : start + 4])
        expected = cross_entropies(logits, F.one_hot(y, CLASSES)).mean()
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-5)
    assert len(trainer.evaluated) == 6
    alone = trainer.predict(Unlabelled()).predictions
    with torch.no_grad():
        expected = trainer.model(pixel_values=fm.finish(given, finish))["logits"]
    torch.testing.assert_close(torch.from_numpy(alone), expected)


def test_a_model_without_keywords_for_its_loss(remembering, arguments):
    """The Trainer divides such a loss by the number of accumulated batches, and so it does this one."""
    torch.manual_seed(0)
    mix = fm.MixUp(num_classes=CLASSES, alpha=2.0)
    args = arguments(gradient_accumulation_steps=2, remove_unused_columns=False)
    trainer = remembering(Plain(), args, train_dataset=Pictures(), mix=mix)
    trainer.train()
    for n, (x, y, images, _, logits, scaled) in enumerate(trainer.trained):
        targets = soft(y, label_weights(images.double(), x.double()), CLASSES)
        expected = cross_entropies(logits, targets).mean() / (2, 2, 1)[n]
        torch.testing.assert_close(scaled.double(), expected, rtol=0, atol=2e-3)


def test_binary_cross_entropy_is_never_chosen(vit, remembering, arguments):
    """What the model itself does with soft labels, and that MixTrainer keeps it from doing so."""
    logits = vit()(pixel_values=X[:4]).logits
    targets = fm.MixUp(num_classes=CLASSES)(X[:4], Y[:4])[1]
    alone = vit()
    loss = alone(pixel_values=X[:4], labels=targets).loss
    assert alone.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, targets))

    mix = fm.MixUp(num_classes=CLASSES)
    trainer = remembering(vit(), arguments(), train_dataset=Pictures(), mix=mix)
    trainer.train()
    assert trainer.model.config.problem_type is None
    for problem_type in ("multi_label_classification", "regression"):
        model = vit(problem_type=problem_type)
        with pytest.raises(ValueError, match=f"problem_type must be None or .*, but got '{problem_type}'"):
            remembering(model, arguments(), train_dataset=Pictures(), mix=mix)
        remembering(model, arguments(), train_dataset=Pictures(), mix=mix, compute_loss_func=lambda *_, **__: None)


def test_a_loss_of_ones_own(remembering, vit, arguments):
    """It gets the mixed targets and what the Trainer counted, and its loss is the loss."""
    calls = []

    def loss(outputs, labels, num_items_in_batch=None):
        calls.append((labels.clone(), int(num_items_in_batch)))
        return F.binary_cross_entropy_with_logits(outputs.logits, labels, reduction="sum") / num_items_in_batch

    trainer = remembering(
        vit(), arguments(), train_dataset=Pictures(), mix=fm.MixUp(num_classes=CLASSES), compute_loss_func=loss
    )
    trainer.train()
    for (labels, items), (x, y, images, _, logits, scaled) in zip(calls, trainer.trained, strict=True):
        targets = soft(y, label_weights(images.double(), x.double()), CLASSES)
        torch.testing.assert_close(labels.double(), targets, rtol=0, atol=1e-3)
        assert items == len(x)
        expected = F.binary_cross_entropy_with_logits(logits.double(), targets, reduction="sum") / len(x)
        torch.testing.assert_close(scaled.double(), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("mixed", [True, False])
def test_mixed_loss_in_a_plain_trainer(transformers, vit, arguments, mixed):
    """Batches that a collator mixed: the Trainer counts K items a sample with (B, K) labels, and mixed_loss knows."""
    from fusedmix.integrations.transformers import mixed_loss

    seen = []

    class Remembering(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs["labels"]
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            seen.append((labels, outputs.logits.detach(), loss.detach()))
            return loss

    def collate(samples):
        batch = transformers.default_data_collator(samples)
        return fm.CutMix(num_classes=CLASSES)(batch) if mixed else batch

    Remembering(vit(), arguments(), collate, train_dataset=Pictures(), compute_loss_func=mixed_loss).train()
    assert len(seen) == 3
    for labels, logits, loss in seen:
        assert labels.ndim == 1 + mixed
        dense = labels if mixed else F.one_hot(labels, CLASSES)
        torch.testing.assert_close(loss.double(), cross_entropies(logits, dense).mean(), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_mixed_loss_of_several_labels(transformers):
    """Those that a module with targets="sparse" gives, of two labels and of three."""
    from fusedmix.integrations.transformers import mixed_loss

    x, y, logits = torch.rand(6, 3, 4, 4), torch.arange(6), torch.randn(6, 6)
    for method in (fm.MixUp, fm.MultiMix):
        mix = method(per="sample", sampling="host", num_classes=6, generator=torch.Generator().manual_seed(1))
        _, dense = mix(x, y)
        mix.targets, mix.generator = "sparse", torch.Generator().manual_seed(1)
        _, sparse = mix(x, y)
        torch.testing.assert_close(mixed_loss((logits,), sparse), mixed_loss((logits,), dense))


def test_resuming(remembering, arguments, tmp_path):
    """From the middle of an epoch and from its end: the batches, losses and weights of an uninterrupted run.

    Not with a ViT: Transformers 5.23 saves its layers under other names than those under which it looks for them when
    it resumes, and goes on with the weights it was given.
    """

    def training(drawn_before, checkpoint=None):
        torch.manual_seed(0)
        mix = fm.CutMix(num_classes=CLASSES, alpha=2.0, per="sample")
        schedule = Halving(mix, 4.0)
        args = arguments(
            num_train_epochs=3, save_strategy="steps", save_steps=1, gradient_accumulation_steps=2,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = remembering(
            Plain(dropout=0.2), args, train_dataset=Pictures(), mix=mix, mix_schedule=schedule, mix_seed=5
        )
        torch.rand(drawn_before)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, schedule

    whole, schedule = training(1)
    assert schedule.epochs == [0, 1, 2]
    assert len(whole.trained) == 9
    for step, batches, epochs in ((1, 2, [0, 1, 2]), (2, 3, [1, 2]), (3, 5, [1, 2])):
        rest, schedule = training(2, str(tmp_path / "out" / f"checkpoint-{step}"))
        assert schedule.epochs == epochs
        assert len(rest.trained) == 9 - batches
        for resumed, uninterrupted in zip(rest.trained, whole.trained[batches:], strict=True):
            for n in (0, 1, 2, 4, 5):
                assert torch.equal(resumed[n], uninterrupted[n])
        for a, b in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.thorough
def test_the_seed(remembering, vit, arguments):
    """That of the arguments, unless another is given; a second training mixes as the first."""

    def images(mix_seed=None, again=False):
        trainer = remembering(
            Plain(), arguments(seed=3, remove_unused_columns=False, max_steps=1), train_dataset=Pictures(),
            mix=fm.MixUp(num_classes=CLASSES), mix_seed=mix_seed,
        )  # fmt: skip
        trainer.train()
        if again:
            trainer.train()
        return trainer.trained[-1][2]

    assert torch.equal(images(), images(3))
    assert torch.equal(images(), images(again=True))
    assert not torch.equal(images(), images(4))


RANKS = """
    import sys
    import torch, torch.distributed as dist
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    from transformers import TrainingArguments
    import fusedmix as fm
    from fusedmix.integrations.transformers import MixTrainer

    x, y = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])

    class Same(torch.utils.data.Dataset):  # every batch of both ranks is the same, but for what is drawn
        def __len__(self):
            return 16

        def __getitem__(self, i):
            return {"pixel_values": x[i // 2 % 2].view(2, 2, 2), "labels": y[i // 2 % 2]}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 2)

        def forward(self, pixel_values, labels=None, **kwargs):
            logits = self.layer(pixel_values.flatten(1))
            return {"logits": logits}

    class Remembering(MixTrainer):
        seen = ()

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.seen = (*self.seen, torch.cat([self.saw.flatten(), loss.view(1)]))
            return loss

        def compute_loss(self, model, inputs, *args, **kwargs):
            hook = model.register_forward_pre_hook(self.remember, with_kwargs=True)
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            hook.remove()
            return loss

        def remember(self, model, args, kwargs):
            self.saw = kwargs["pixel_values"].clone()

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def train(checkpoint=None):
        torch.manual_seed(0)
        trainer = Remembering(
            Model(),
            TrainingArguments(
                sys.argv[1], use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=2, num_train_epochs=2,
                save_strategy="steps", save_steps=3, report_to="none", disable_tqdm=True, learning_rate=0.1,
                remove_unused_columns=False,
            ),
            train_dataset=Same(),
            mix=fm.MixUp(num_classes=2),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return torch.stack(trainer.seen), trainer.model.layer.weight.detach(), trainer.args.process_index

    def both():
        whole, weight, rank = train()
        rest, resumed, _ = train(sys.argv[1] + "/checkpoint-3")
        torch.save((whole, weight, rest, resumed), f"{sys.argv[1]}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()

    # What torchrun does, with the libraries imported once for both ranks.
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
    elastic_launch(config, both)()
"""


@pytest.mark.thorough
def test_two_ranks(transformers, tmp_path):
    """Seeded alike, two ranks mix differently, train the same weights, and go on as they would have."""
    run_script(write_script(tmp_path / "ranks.py", RANKS), tmp_path)
    (whole, weight, *resumed), (other, other_weight, *other_resumed) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert whole.shape == (8, 17)  # two epochs of four batches on each rank
    assert all(not torch.equal(a[:16], b[:16]) for a, b in zip(whole, other, strict=True))
    assert torch.equal(weight, other_weight)
    for uninterrupted, (rest, weight_then) in ((whole, resumed), (other, other_resumed)):
        assert torch.equal(rest, uninterrupted[3:])
        assert torch.equal(weight_then, weight)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mix": torch.nn.Identity()}, TypeError, "mix must be a mixing module"),
        ({"mix": fm.CutMix(generator=torch.Generator())}, ValueError, "mix must have generator=None"),
        ({"mix_seed": "1"}, TypeError, "mix_seed must be an int, but got '1'"),
        ({"mix_schedule": [1]}, TypeError, "mix_schedule must be None, or .*, but got int"),
        ({"mix": fm.CutMix(label_smoothing=0.1)}, ValueError, "smoothed twice: label_smoothing_factor=0.2"),
    ],
)
def test_errors(remembering, vit, arguments, options, error, message):
    with pytest.raises(error, match=message):
        remembering(
            vit(), arguments(label_smoothing_factor=0.2), train_dataset=Pictures(), **{"mix": fm.CutMix(), **options}
        )


def test_a_batch_without_labels(remembering, arguments):
    trainer = remembering(
        Plain(), arguments(remove_unused_columns=False), train_dataset=Pictures(), mix=fm.CutMix(num_classes=CLASSES)
    )
    with pytest.raises(ValueError, match=r"labels under \"labels\", but has only \['pixel_values'\]"):
        super(type(trainer), trainer).compute_loss(trainer.model, {"pixel_values": X})


def test_videos(remembering, arguments):
    """Of (B, T, C, H, W) all frames are mixed alike, and a tensor before the pixels is not mixed in their place."""
    video = torch.rand(4, 3, 2, 8, 8)
    inputs = {"bias": torch.rand(4, 1, 8, 8), "pixel_values": video, "labels": Y[:4]}
    seen = {}

    class Video(torch.nn.Module):
        def forward(self, pixel_values, bias):
            seen.update(pixels=pixel_values, bias=bias)
            return {"logits": pixel_values.mean((1, 3, 4)) @ torch.ones(2, CLASSES)}

    mix = fm.CutMix(num_classes=CLASSES)
    trainer = remembering(Video(), arguments(), train_dataset=Pictures(), mix=mix)
    assert super(type(trainer), trainer).compute_loss(trainer.model.train(), dict(inputs)).isfinite()
    assert seen["bias"] is inputs["bias"]
    lent = (seen["pixels"] != video).flatten(1, 2)
    assert lent.any()
    assert torch.equal(lent.any(1), lent.all(1)), "one box in all frames and colours"


def test_classes_that_the_model_does_not_have(remembering, vit, arguments):
    trainer = remembering(vit(), arguments(), train_dataset=Pictures(), mix=fm.CutMix(num_classes=CLASSES + 2))
    with pytest.raises(ValueError, match=f"logits have {CLASSES} classes, but the mixed labels {CLASSES + 2}"):
        trainer.train()


def test_without_a_mix(remembering, vit, arguments):
    """mix=None: the Trainer as it is."""
    trainer = remembering(vit(), arguments(), train_dataset=Pictures())
    trainer.train()
    for x, _, images, labelled, _, _ in trainer.trained:
        assert torch.equal(images, x)
        assert labelled


@pytest.mark.parametrize("absent", ["transformers", "accelerate"])
def test_without_a_library(monkeypatch, absent):
    message = import_without(monkeypatch, "transformers", "transformers", absent)
    assert "pip install transformers accelerate" in message


def test_images_are_not_mixed_twice(remembering, vit, arguments):
    """By the Trainer, and by a handle on the model or on a part of it."""
    model = vit()
    trainer = remembering(model=model, args=arguments(), train_dataset=Pictures(), mix=fm.MixUp(num_classes=CLASSES))
    with fm.attach(model.classifier, fm.MixUp()), pytest.raises(ValueError, match=r"mixed twice.*fusedmix\.attached"):
        trainer.train()
    assert not trainer.trained
    trainer.train()


@pytest.mark.parametrize("own", [False, True], ids=["the usual collator", "another one"])
def test_collator(transformers, own):
    """What the other collator makes, mixed as the module mixes it."""
    from fusedmix.integrations.transformers import MixCollator

    def another(samples):
        images, labels = (torch.stack([sample[key] for sample in samples]) for key in ("pixel_values", "labels"))
        return transformers.BatchFeature({"labels": labels, "pixel_values": 2 * images})

    mixer = fm.RandomMix([fm.MixUp(), fm.CutMix()], num_classes=CLASSES)
    samples = [Pictures()[i] for i in range(4)]
    torch.manual_seed(3)
    batch = MixCollator(mixer, another if own else None)(samples)
    torch.manual_seed(3)
    images, targets = mixer(X[:4] * (2 if own else 1), Y[:4])
    assert isinstance(batch, transformers.BatchFeature if own else dict)
    assert torch.equal(batch["pixel_values"], images)
    assert torch.equal(batch["labels"], targets)


def test_collator_in_workers():
    """Each worker draws for itself; and one-hot labels are mixed, too."""
    required("transformers")
    from fusedmix.integrations.transformers import MixCollator

    mixer = fm.MixUp(num_classes=CLASSES)
    loader = torch.utils.data.DataLoader(
        Pictures(one_hot=True), batch_size=4, num_workers=2, collate_fn=MixCollator(mixer)
    )
    weights = []
    for i, batch in enumerate(loader):
        found = label_weights(batch["pixel_values"].double(), X[4 * i : 4 * i + 4].double())
        torch.testing.assert_close(
            batch["labels"].double(), soft(Y[4 * i : 4 * i + 4], found, CLASSES), rtol=0, atol=1e-4
        )
        weights.append(round(float(found[0]), 4))
    assert len(set(weights)) == 3


def test_collator_refuses():
    required("transformers")
    from fusedmix.integrations.transformers import MixCollator

    with pytest.raises(TypeError, match="mix must be a mixing module"):
        MixCollator(torch.nn.Identity())
    with pytest.raises(TypeError, match="collator must be a function or None, but got 'default'"):
        MixCollator(fm.MixUp(), "default")
    with pytest.raises(ValueError, match="mix must have generator=None"):
        MixCollator(fm.MixUp(generator=torch.Generator()))
    with pytest.raises(ValueError, match="labels"):
        MixCollator(fm.MixUp(num_classes=CLASSES))([{"pixel_values": x} for x in X[:2]])
    assert repr(MixCollator(fm.MixUp())) == "MixCollator(MixUp(alpha=1.0), default_data_collator)"
