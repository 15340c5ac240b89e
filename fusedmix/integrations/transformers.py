"""Mixing with Hugging Face Transformers, for image classification: `MixTrainer(mix=...)` in place of its Trainer, and
`MixCollator(mix)` for a DataLoader of your own.

The data collator of a Trainer is no place for it: the Trainer collates evaluation batches by the same one, counts each
entry of (B, K) labels as an item of the batch, and draws the first batch after resuming before it restores the
generators.

Examples:
    >>> model = ViTForImageClassification.from_pretrained(name, num_labels=1000, ignore_mismatched_sizes=True)
    >>> mixer = fm.RandomMix([fm.MixUp(alpha=0.8), fm.CutMix()], num_classes=1000)
    >>> trainer = MixTrainer(
    ...     model=model, args=args, train_dataset=train, eval_dataset=test, mix=mixer, compute_metrics=accuracy
    ... )
    >>> trainer.train()
    >>> trainer.evaluate()  # as it always was: nothing is mixed
    >>> mixer.finish = fm.Finish((mean, std))  # for pixel_values of bytes, in training and evaluation

    >>> loader = DataLoader(train, batch_size=64, collate_fn=MixCollator(mixer))
    >>> for batch in loader:  # batch["labels"]: float32 (B, 1000)
    ...     logits = model(pixel_values=batch["pixel_values"]).logits
    ...     loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedmix import checks
from fusedmix.attachment import attached
from fusedmix.integrations import evaluation
from fusedmix.integrations.positions import check_mix, check_schedules, check_seed, mix_at, stepped
from fusedmix.module import MixTransform, mixing_module
from fusedmix.plan import SparseTargets, SparseTerms

try:
    from transformers import Trainer, default_data_collator
except ImportError as error:  # Transformers raises one, too, where its Trainer lacks Accelerate.
    raise ImportError(
        "fusedmix.integrations.transformers needs the Trainer of Transformers, which is not installed or cannot be "
        f"imported ({error}): pip install transformers accelerate"
    ) from error


class MixTrainerMixin(checks.Checked):
    """What makes a Trainer mix; for Trainers of one's own: `class Mine(MixTrainerMixin, MyTrainer)`.

    In training, and only there, the inputs are mixed on the device just before the model sees them. The model is not
    given the labels: given soft ones, and config.problem_type None, it would silently take binary cross-entropy for
    its loss, and flatten them otherwise. The loss is `mixed_loss`, or the `compute_loss_func` that the Trainer got,
    which is called with soft targets then; it is scaled for gradient accumulation as the Trainer scales its own.
    `label_smoothing_factor` acts as usual.

    If the module has a `finish`, batches that are evaluated or predicted are finished on the device, as those of the
    training are, but neither mixed nor flipped nor erased: all datasets hold bytes then.

    The draws of a batch follow from the seed, the rank, the optimizer step and the number of the batch in it: every
    rank has its own, and a training that is resumed from a checkpoint mixes as one that was not interrupted.

    Args:
        *args: those of the Trainer.
        **kwargs: those of the Trainer.
        mix: any mixing module, with generator=None; None: nothing is mixed. Its labels_getter="default" finds the key
            "labels"; the images are under "pixel_values" or what else says so, or the only tensor that may be images.
            Videos (B, T, C, H, W) are mixed alike in all frames; axes= cuts them in time too.
        mix_schedule: None, or one or several objects whose `step(epoch)` is called before the first batch of every
            epoch. They are not part of checkpoints, but stepped when a training resumes.
        mix_seed: None: `args.seed`.

    Raises:
        ValueError: the model's problem_type is another than single-label classification and there is no
            compute_loss_func; labels would be smoothed twice; images would be mixed twice, by `fusedmix.attach` too; a
            batch of the training has no "labels".
    """

    _checks: ClassVar = {"mix_schedules": check_schedules, "mix_seed": check_seed}

    # These four are the Trainer's.
    args: Any
    model: Any
    state: Any
    compute_loss_func: Any

    def __init__(
        self,
        *args: Any,
        mix: MixTransform | None = None,
        mix_schedule: Any = None,
        mix_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._mix = None if mix is None else check_mix("mix", mix)
        self.mix_schedules = check_schedules("mix_schedule", mix_schedule)
        super().__init__(*args, **kwargs)
        self.mix_seed = self.args.seed if mix_seed is None else mix_seed
        self._at = (-1, -1)  # the optimizer step, and the number of the batch in it
        self._epoch: int | None = None  # the epoch for which the schedules were stepped
        self.mix = mix

    @property
    def mix(self) -> MixTransform | None:
        """The mixing module. Another one, or None, acts from the next batch on."""
        return self._mix

    @mix.setter
    def mix(self, mix: MixTransform | None) -> None:
        if mix is not None:
            self._check_smoothing(check_mix("mix", mix))
            self._loss_of_mixed = self.compute_loss_func
            if self._loss_of_mixed is None:
                smoothing = self.args.label_smoothing_factor
                self._loss_of_mixed = functools.partial(_loss, label_smoothing=smoothing)
                problem = getattr(getattr(self.model, "config", None), "problem_type", None)
                if problem not in (None, "single_label_classification"):
                    raise ValueError(
                        "The model's problem_type must be None or 'single_label_classification', for which mixing has "
                        f"a loss, but got {problem!r}. Pass compute_loss_func= for another loss."
                    )
        self._mix = mix

    def _check_smoothing(self, mix: MixTransform) -> None:
        smoothing = self.args.label_smoothing_factor
        if smoothing and mix.label_smoothing:
            raise ValueError(
                f"Labels would be smoothed twice: label_smoothing_factor={smoothing} and "
                f"mix.label_smoothing={mix.label_smoothing}. Set one of them to 0."
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.mix is not None and any(attached(module) for module in self.model.modules()):
            raise ValueError(
                "The images would be mixed twice and their labels once: by mix=, and by the handle of fusedmix.attach "
                "on the model. Call the handle's remove() (fusedmix.attached(model) finds it), or pass mix=None."
            )
        self._at, self._epoch = (-1, -1), None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.mix is not None and self.mix.finish is not None:
            inputs = evaluation.finished(dict(self._prepare_inputs(inputs)), self.mix)  # type: ignore[attr-defined]
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.mix is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        self._check_smoothing(self.mix)  # It may have been set since it was checked first.
        if "labels" not in inputs:
            raise ValueError(f'The batch must hold its labels under "labels", but has only {sorted(inputs)}.')
        state = self.state
        epoch = int(state.epoch or 0)
        self._epoch = stepped(self.mix_schedules, epoch, self._epoch)
        step, batch = self._at
        self._at = (step, batch + 1) if step == state.global_step else (state.global_step, 0)
        if self.compute_loss_func is None:
            num_items_in_batch = _samples(num_items_in_batch, inputs["labels"])
        mixed = mix_at(self.mix, dict(inputs), self.mix_seed, self.args.process_index, *self._at)

        # The function is in place while the Trainer computes this loss, but not when it asks later who has scaled it.
        before, self.compute_loss_func = self.compute_loss_func, self._loss_of_mixed
        try:
            return super().compute_loss(model, mixed, return_outputs, num_items_in_batch)  # type: ignore[misc]
        finally:
            self.compute_loss_func = before


class MixTrainer(MixTrainerMixin, Trainer):
    """`transformers.Trainer` that mixes in training: see `MixTrainerMixin` for its keywords and what it does."""


class MixCollator:
    """A data collator that mixes what another one has collated, for DataLoaders of the training set.

    It mixes in the workers of the DataLoader, which each draw their own numbers. Give it to no Trainer, which would
    evaluate with it as well (`MixTrainer` does not), and compute the loss from the logits: a model that is given soft
    labels takes a binary cross-entropy for its loss.

    Args:
        mix: any mixing module, with generator=None. Its labels_getter="default" finds the key "labels"; the images are
            under "pixel_values" or what else says so, or the only tensor that may be images.
        collator: makes a batch of a list of samples, as the data collators of Transformers do. None:
            `transformers.default_data_collator`, which stacks tensors and names the labels "labels".

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or mix has a generator of its own. In a call: the batch
            cannot be mixed as it is.
    """

    def __init__(self, mix: MixTransform, collator: Callable[[list[Any]], Any] | None = None) -> None:
        if mixing_module("mix", mix).generator is not None:
            raise ValueError(
                "mix must have generator=None, because every worker of a DataLoader would draw the same from its copy, "
                "but it has one."
            )
        if collator is not None and not callable(collator):
            raise TypeError(f"collator must be a function or None, but got {collator!r}.")
        self.mix = mix
        self.collator = default_data_collator if collator is None else collator

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of the other collator, with images and labels mixed."""
        return self.mix(self.collator(samples))

    def __repr__(self) -> str:
        return f"MixCollator({self.mix!r}, {getattr(self.collator, '__name__', self.collator)})"


def mixed_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy as a `compute_loss_func`, for classes as for mixed labels, never a binary one.

    For Trainers whose batches come mixed already; `MixTrainer` needs no compute_loss_func. (Sparse targets cannot come
    so: the Trainer does not take named tuples apart.)

    Args:
        outputs: of the model, with (B, K) logits.
        labels: (B,) classes or (B, K) soft targets.
        num_items_in_batch: what the Trainer counted, a sample with (B, K) labels as K items; None: the mean.

    Returns:
        float32 (float64 for float64 logits), a scalar: the mean, or the sum divided by the number of samples.
    """
    return _loss(outputs, labels, _samples(num_items_in_batch, labels))


def _samples(num_items: Any, labels: Any) -> Any:
    """How many samples the Trainer counted: it counts the entries of its labels."""
    if num_items is None or not isinstance(labels, Tensor) or labels.ndim < 2:
        return num_items
    return num_items / labels.shape[1]


def _loss(outputs: Any, labels: Any, num_items_in_batch: Any = None, *, label_smoothing: float = 0.0) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    z = logits if logits.dtype == torch.float64 else logits.float()

    if isinstance(labels, Tensor) and labels.ndim == z.ndim == 2 and labels.shape[1] != z.shape[1]:
        raise ValueError(
            f"The logits have {z.shape[1]} classes, but the mixed labels {labels.shape[1]}: num_classes of the mixing "
            "module must be num_labels of the model."
        )

    def each(targets: Tensor) -> Tensor:
        targets = targets.to(z.device, z.dtype if targets.ndim == 2 else torch.int64)
        return F.cross_entropy(z, targets, label_smoothing=label_smoothing, reduction="none")

    if isinstance(labels, SparseTargets):
        weight = labels.weight.to(z.device)
        own, lent = weight.to(z.dtype), (1.0 - weight).to(z.dtype)
        losses = own * each(labels.labels) + lent * each(labels.partner_labels)
    elif isinstance(labels, SparseTerms):
        weight = labels.weight.to(z.device, z.dtype)
        losses = sum(w * each(y) for w, y in zip(weight.unbind(1), labels.labels.unbind(1), strict=True))  # type: ignore[assignment]
    else:
        losses = each(labels)
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
