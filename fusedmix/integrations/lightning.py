"""Mixing in Lightning, with `lightning` as with `pytorch_lightning`: `Trainer(callbacks=[MixCallback(mix)])`.

Examples:
    >>> class Classifier(L.LightningModule):
    ...     def training_step(self, batch, batch_idx):
    ...         images, targets = batch  # mixed: targets are (B, K)
    ...         return F.cross_entropy(self(images), targets)
    >>> mixer = fm.RandomMix([fm.MixUp(alpha=0.8), fm.CutMix()], num_classes=1000)
    >>> L.Trainer(callbacks=[MixCallback(mixer)]).fit(Classifier(), train_loader, val_loader)
    >>> mixer.finish = fm.Finish((mean, std))  # for loaders that give bytes, in training and evaluation
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import MutableMapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fusedmix import checks, sample_tree
from fusedmix.integrations import evaluation
from fusedmix.integrations.positions import Schedule, check_mix, check_schedules, check_seed, mix_at, stepped
from fusedmix.module import MixTransform

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:  # The same package has two names: this takes the one that the program uses.
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            from pytorch_lightning import Callback
        else:
            try:
                from lightning.pytorch import Callback
            except ModuleNotFoundError:
                from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        raise ImportError(
            "fusedmix.integrations.lightning needs Lightning, which is not installed: pip install lightning"
        ) from error


class MixCallback(checks.Checked, Callback):
    """Mixes every batch of the training, on the device and after the module's own on_after_batch_transfer.

    Validation, sanity checks, tests and predictions see their batches as they are. If the module has a `finish`, their
    images are finished, as those of the training are, but neither mixed nor flipped nor erased: all loaders give bytes
    then. The elements of the batch that hold images, masks and labels are replaced, so they must lie in lists or dicts,
    as those of PyTorch's default collation do. Labels become (B, K) soft targets, or `SparseTargets` if the module says
    targets="sparse"; what else training_step does with labels, such as an accuracy, must expect that.

    The draws of a batch follow from the seed, the rank, the epoch and the number of the batch in it. A training that
    is resumed from a checkpoint, also in the middle of an epoch, mixes as one that was not interrupted.

    Args:
        mix: any mixing module, with generator=None.
        schedule: None, or one or several objects whose `step(epoch)` is called before the first batch of every epoch;
            those with `state_dict` and `load_state_dict` are part of the checkpoint.
        seed: None: the seed of torch's generator on rank 0 when the training starts (what `seed_everything` set).
            Resuming takes the seed of the checkpoint.

    Raises:
        TypeError: a batch holds what is to be replaced in a tuple, or training_step takes a dataloader_iter.
        ValueError: a batch cannot be mixed or finished as it is.
    """

    mix: MixTransform
    schedules: tuple[Schedule, ...]
    seed: int | None

    _checks: ClassVar = {"mix": check_mix, "schedules": check_schedules, "seed": check_seed}

    def __init__(self, mix: MixTransform, *, schedule: Any = None, seed: int | None = None) -> None:
        self.mix = mix
        self.schedules = check_schedules("schedule", schedule)
        self.seed = seed
        self._epoch: int | None = None  # the epoch for which the schedules were stepped

    def __repr__(self) -> str:
        schedule = f", schedule={self.schedules!r}" if self.schedules else ""
        return f"MixCallback({self.mix!r}{schedule}, seed={self.seed})"

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise TypeError(
                "MixCallback cannot mix what training_step(dataloader_iter) fetches by itself: let it take a batch, or "
                "call the mixing module in it."
            )
        if self.seed is None:
            self.seed = trainer.strategy.broadcast(torch.initial_seed())
        self._epoch = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        epoch = trainer.current_epoch
        # Not in on_train_epoch_start: a training that is resumed in the middle of an epoch skips that.
        self._epoch = stepped(self.schedules, epoch, self._epoch)
        assert self.seed is not None
        mix = self.mix
        parsed = sample_tree.parse(batch, type(mix).__name__, mix.labels_getter, mix.images_getter, mix.axes)
        labels = [parsed.labels_index] if parsed.labels is not None else []
        paths = _replaceable(batch, [*parsed.images, *parsed.masks, *labels])
        _replace(batch, paths, mix_at(mix, batch, self.seed, trainer.global_rank, epoch, batch_idx))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.mix.finish is not None:
            paths = _replaceable(batch, evaluation.parse(batch, self.mix).images)
            _replace(batch, paths, evaluation.finished(batch, self.mix))

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "schedules": [s.state_dict() if hasattr(s, "state_dict") else None for s in self.schedules],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]
        for schedule, state in zip(self.schedules, state_dict["schedules"], strict=True):
            if state is not None:
                schedule.load_state_dict(state)  # type: ignore[attr-defined]


def _replaceable(batch: Any, positions: Sequence[int]) -> list[Any]:
    """The paths of the leaves of a batch at some positions.

    Raises:
        TypeError: one of them cannot be replaced where it is.
    """
    paths = sample_tree.paths(batch)
    for i in positions:
        holder = _at(batch, paths[i][:-1])
        if not paths[i] or not isinstance(holder, (MutableSequence, MutableMapping)):
            raise TypeError(
                f"MixCallback replaces images and labels in the batch, which must hold them in a list or a dict, but "
                f"got a {type(holder).__name__}. Return a list from collate_fn, or call the mixing module, and "
                "fusedmix.finish for evaluation, in on_after_batch_transfer."
            )
    return [paths[i] for i in positions]


def _replace(batch: Any, paths: Sequence[Any], by: Any) -> None:
    """Replaces what stands at the end of each path by what stands there in another batch."""
    for path in paths:
        holder, last = _at(batch, path[:-1]), path[-1]
        holder[last.idx if isinstance(holder, MutableSequence) else last.key] = _at(by, path)


def _at(tree: Any, path: Any) -> Any:
    """What stands at the end of a path of keys."""
    for key in path:
        tree = key.get(tree)
    return tree
