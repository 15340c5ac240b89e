"""MONAI's MixUp, CutMix and CutOut (monai.transforms.regularization) and their dictionary versions, by one changed
import.

The same seed makes the same λ, partners and boxes, because MONAI's own `Mixer` draws them. A batch is read and written
once. What MONAI 1.5 does wrong these do right (docs/monai.md has the list): labels (B, K) are weighted by the share of
the image that is left, where MONAI gives the partner's.

Examples:
    >>> transform = CutMixd(keys="image", label_keys="label", batch_size=8).set_random_state(seed=0)
    >>> for batch in loader:  # images (B, C, D, H, W), labels (B, K)
    ...     batch = transform(batch)
    ...     loss = F.cross_entropy(model(batch["image"]), batch["label"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedmix import checks
from fusedmix.mixing import mix
from fusedmix.plan import MixPlan
from fusedmix.segmentation import mix_masks
from fusedmix.targets import mix_targets

if TYPE_CHECKING:
    from monai import transforms
    from monai.transforms.regularization.array import Mixer
    from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
else:
    try:
        from monai import transforms
        from monai.transforms.regularization.array import Mixer
        from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
    except ModuleNotFoundError as error:
        raise ImportError(
            "fusedmix.integrations.monai needs MONAI, which is not installed: pip install monai"
        ) from error


class _Mixer(Mixer):
    """What the three share: `randomize` is MONAI's, which leaves λ, partners and a corner in `_params`."""

    def __init__(self, batch_size: int, alpha: float = 1.0) -> None:
        super().__init__(checks.integer("batch_size", batch_size, 1), checks.number("alpha", alpha, 0.0, open_low=True))

    def apply(self, data: Any) -> Any:
        """Images mixed by what was drawn last, of the type that came."""
        x = self._images(data)
        if not hasattr(self, "_params"):
            raise ValueError(f"{type(self).__name__}.randomize() must come before a call with randomize=False.")
        return convert_to_dst_type(mix(x, self._plan(tuple(x.shape[2:]))), dst=data)[0]

    def _plan(self, size: tuple[int, ...]) -> MixPlan:
        """What was drawn, for images of that size."""
        raise NotImplementedError

    def _batch(self, name: str, data: Any) -> Tensor:
        x: Tensor = checks.dense(name, convert_to_tensor(data, track_meta=False))
        if x.ndim < 1 or x.shape[0] != self.batch_size:
            raise ValueError(
                f"{name} must have batch_size = {self.batch_size} samples, but has shape {tuple(x.shape)}."
            )
        return x

    def _images(self, data: Any) -> Tensor:
        x = checks.batch("data", self._batch("data", data))
        if not 3 <= x.ndim <= 5 or 0 in x.shape:
            raise ValueError(
                "data must be (B, C, *S) with 1 to 3 spatial sides of at least one pixel, but has "
                f"shape {tuple(x.shape)}."
            )
        return x

    def _soft(self, labels: Any) -> Tensor:
        """Labels that may be weighted."""
        y = self._batch("labels", labels)
        if not y.is_floating_point():
            raise ValueError(
                "labels must be floating point, one-hot (B, K) if they are classes, but are "
                f"{checks.names([y.dtype])} of shape {tuple(y.shape)}."
            )
        return y


class MixUp(_Mixer):
    """monai.transforms.MixUp: λ·x + (1-λ)·x[partner], λ ~ Beta(α, α) for each sample, partners by a permutation (Zhang,
    Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018).

    Args:
        batch_size: samples of a batch, B.
        alpha: α > 0.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __call__(self, data: Any, labels: Any = None, randomize: bool = True) -> Any:
        """Mixes images and labels by one draw.

        Args:
            data: (B, C, *S), with 1 to 3 spatial sides: a tensor, MetaTensor or array of a dtype that `fusedmix.mix`
                takes.
            labels: None, or floating point (B, ...): one-hot (B, K), dense maps (B, K, *S), numbers (B,).
            randomize: whether λ and partners are drawn anew.

        Returns:
            The images, or (images, labels), of the types that came. A MetaTensor keeps its metadata and operations.

        Raises:
            TypeError, ValueError: a dtype or shape does not fit, or there are not batch_size samples. Nothing has been
                drawn then.
        """
        self._images(data)
        y = None if labels is None else self._soft(labels)
        if randomize:
            self.randomize()
        mixed = self.apply(data)
        return mixed if y is None else (mixed, convert_to_dst_type(mix_targets(y, self._plan(())), dst=labels)[0])

    def _plan(self, size: tuple[int, ...]) -> MixPlan:
        lam, partner, _ = self._params
        return MixPlan.from_parts(lam=lam, partner=torch.from_numpy(partner))


class CutMix(_Mixer):
    """monai.transforms.CutMix: the partner's pixels in a box of the share 1-λ of an image, λ ~ Beta(α, α) for each
    sample, from a corner on that the batch shares (Yun et al., "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features", ICCV 2019).

    A side of the box is (1-λ)^½ of the image's, of volumes too, and it is clipped to the image, as MONAI has it; labels
    are weighted by the share that is really left.

    Args:
        batch_size: samples of a batch, B.
        alpha: α > 0.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __call__(self, data: Any, labels: Any = None, randomize: bool = True) -> Any:
        """Mixes images and labels by one draw.

        Args:
            data: as in `MixUp`.
            labels: None; (B, K, *S) maps of the size of the images, of any dtype, which are cut as these are; or
                floating point of any other shape (B, ...), which is weighted: one-hot (B, K), numbers (B,).
            randomize: whether λ, partners and the corner are drawn anew.

        Returns:
            The images, or (images, labels), of the types that came. A MetaTensor keeps its metadata and operations.

        Raises:
            TypeError, ValueError: as in `MixUp`.
        """
        x = self._images(data)
        size = tuple(x.shape[2:])
        if labels is not None:
            self._targets(labels, size)
        if randomize:
            self.randomize(x)
        mixed = self.apply(data)
        return mixed if labels is None else (mixed, self.apply_on_labels(labels, size))

    def apply_on_labels(self, labels: Any, size: tuple[int, ...]) -> Any:
        """Labels of images with those spatial sides, cut or weighted by what was drawn last, of the type that came."""
        y, plan = self._targets(labels, size), self._plan(size)
        mixed = mix_masks(y, plan) if tuple(y.shape[2:]) == size else mix_targets(y, plan)
        return convert_to_dst_type(mixed, dst=labels)[0]

    def _targets(self, labels: Any, size: tuple[int, ...]) -> Tensor:
        y = self._batch("labels", labels)
        return y if tuple(y.shape[2:]) == size else self._soft(labels)

    def _plan(self, size: tuple[int, ...]) -> MixPlan:
        lam, partner, corner = self._params
        if len(corner) != len(size):
            raise ValueError(
                f"data must have {len(corner)} spatial sides, for which a box was drawn, but has {len(size)}: {size}."
            )
        sides = torch.tensor(size)
        first = torch.minimum(torch.cat(corner), sides)
        # Rounded as MONAI's numbers are: a root of float64, a sum of float32.
        length = (1 - lam).double().sqrt().unsqueeze(1) * sides
        stop = torch.minimum((torch.cat(corner).float() + length.float()).ceil().long(), sides)
        first = first.expand_as(stop)
        boxes = torch.cat((first, torch.maximum(first, stop)), 1)
        return MixPlan.from_parts(boxes=boxes, partner=torch.from_numpy(partner), size=size)


class CutOut(CutMix):
    """monai.transforms.CutOut: zeros in the box of `CutMix` (DeVries, Taylor, "Improved Regularization of Convolutional
    Neural Networks with Cutout", 2017).

    Args:
        batch_size: samples of a batch, B.
        alpha: α > 0.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __call__(self, data: Any, randomize: bool = True) -> Any:  # type: ignore[override]
        """Cuts boxes out of images.

        Args:
            data: as in `MixUp`.
            randomize: whether λ and the corner are drawn anew.

        Returns:
            The images, of the type that came.

        Raises:
            TypeError, ValueError: as in `MixUp`.
        """
        return super().__call__(data, None, randomize)

    def _plan(self, size: tuple[int, ...]) -> MixPlan:
        plan = super()._plan(size)
        return replace(plan, fill=(0.0,), weight=torch.ones_like(plan.weight))


class MixUpd(transforms.MixUpd):
    """monai.transforms.MixUpd: the entries of a dictionary mixed by one draw of `MixUp`.

    Args:
        keys: of (B, C, *S) images, maps and of one-hot labels (B, K): whatever is blended.
        batch_size: samples of a batch, B.
        alpha: α > 0.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __init__(self, keys: Any, batch_size: int, alpha: float = 1.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, batch_size, alpha, allow_missing_keys)
        self.mixup = MixUp(batch_size, alpha)


class CutMixd(transforms.CutMixd):
    """monai.transforms.CutMixd: the entries of a dictionary mixed by one draw of `CutMix`.

    Args:
        keys: of images (B, C, *S).
        batch_size: samples of a batch, B.
        label_keys: of labels as `CutMix` takes them. The first go with the images of the first key, and so on; those
            that are left over with those of the last one. None: images alone are mixed.
        alpha: α > 0.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        keys: Any,
        batch_size: int,
        label_keys: Any = None,
        alpha: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, batch_size, label_keys, alpha, allow_missing_keys)
        self.mixer = CutMix(batch_size, alpha)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A dictionary of the same entries, those of the keys mixed.

        Raises:
            KeyError: a key is missing.
            TypeError, ValueError: as in `CutMix`.
        """
        mixed = dict(data)
        missing = [key for key in self.label_keys if key not in mixed]
        if missing and not self.allow_missing_keys:
            raise KeyError(f"label_keys must be keys of data, {list(mixed)}, but are {missing} besides.")
        images = {key: self.mixer._images(mixed[key]) for key in self.key_iterator(mixed)}
        if not images:
            return mixed
        sizes = [tuple(x.shape[2:]) for x in images.values()]
        labels = {key: sizes[min(i, len(sizes) - 1)] for i, key in enumerate(self.label_keys) if key in mixed}
        for key, size in labels.items():
            self.mixer._targets(mixed[key], size)
        self.mixer.randomize(next(iter(images.values())))
        for key in images:
            mixed[key] = self.mixer.apply(mixed[key])
        for key, size in labels.items():
            mixed[key] = self.mixer.apply_on_labels(mixed[key], size)
        return mixed


class CutOutd(transforms.CutOutd):
    """monai.transforms.CutOutd: boxes cut out of the entries of a dictionary, by one draw of `CutOut`.

    Args:
        keys: of images (B, C, *S).
        batch_size: samples of a batch, B.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __init__(self, keys: Any, batch_size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, batch_size, allow_missing_keys)
        self.cutout = CutOut(batch_size)


MixUpD = MixUpDict = MixUpd
CutMixD = CutMixDict = CutMixd
CutOutD = CutOutDict = CutOutd
