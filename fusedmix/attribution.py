"""Importance maps by a network: which pixels speak for a class, and on which the loss depends.

Both are functions of images and labels, to be given to a method as `importance=`. They cost a forward pass of their
own, and leave the network as it is: the modes of its modules, gradients of its parameters, statistics of its batch
norms and torch's random numbers. The network is in evaluation mode meanwhile, so that samples don't depend on each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedmix import checks, step
from fusedmix.subclasses import plain

ByNetwork = Callable[..., Tensor]  # of images and labels


def class_activation_map(model: nn.Module, layer: str | nn.Module) -> ByNetwork:
    """A function (images, labels=None) -> maps of what speaks for the class of each image: the channels of a layer,
    each times the derivative of the class's logit by it, summed over the pixels (Selvaraju et al., "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization", ICCV 2017).

    Where only a global average pool and a linear layer follow, that derivative is the weight of the linear layer, so
    the maps are the class activation maps of Zhou et al. ("Learning Deep Features for Discriminative Localization",
    CVPR 2016), without the bias. That is what SnapMix takes. Nothing is cut off at 0, as Grad-CAM's figures are: maps
    are negative where something speaks against the class.

    It costs a forward pass without gradients up to the layer, and a backward pass of what follows it.

    Args:
        model: a network from images to logits (B, K), or to something with an attribute `logits`. Of a
            DistributedDataParallel the network inside is taken.
        layer: the last one with spatial dims, as a rule: its name in `model.named_modules()`, or the module itself. Its
            output is (B, channels, *sides).

    Returns:
        The function. It takes images as the network does and labels, (B,) classes or (B, K) soft labels, whose classes
        are weighted; None: the class of the largest logit. It returns (B, *sides) float32.

    Raises:
        TypeError, ValueError: model is no module, or layer none of it; when called: the output of the layer or of the
            network is of another shape, or labels don't fit.
    """
    model = _network(model)
    return _ClassActivationMap(model, _layer(model, layer))


def input_gradient(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> ByNetwork:
    """A function (images, labels) -> maps of how much the loss depends on each pixel: the root of the mean over the
    channels of the squared derivative (Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for
    Optimal Mixup", ICML 2020).

    It costs a forward and a backward pass, which computes no gradients of parameters.

    Args:
        model: a network from images to logits, or to something with an attribute `logits`. Of a
            DistributedDataParallel the network inside is taken.
        loss: a function (logits, labels) -> loss, of the batch or of each sample.

    Returns:
        The function. It takes floating-point images (B, channels, *sides) and labels as the loss does, and returns
        (B, *sides) float32.

    Raises:
        TypeError: model is no module, or loss no function.
        ValueError: when called: images are not floating point, labels are None, or the loss doesn't depend on them.
    """
    model = _network(model)
    if not callable(loss):
        raise TypeError(f"loss must be a function of logits and labels, but got {type(loss).__name__}.")
    return _InputGradient(model, loss)


class _ClassActivationMap:
    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.model, self.layer = model, layer

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        images, found = plain(checks.tensor("images", images)).detach(), []

        def watch(module: nn.Module, args: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim < 3 or not output.is_floating_point():
                what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise ValueError(f"layer must have an output of shape (batch_size, channels, *sides), but got {what}.")
            found.append(output.detach().requires_grad_())
            torch.set_grad_enabled(True)  # until the end of the no_grad around the forward pass
            return found[-1].clone()  # What follows may work in place, which a leaf does not bear.

        handle = self.layer.register_forward_hook(watch)
        try:
            with _undisturbed(self.model, images):
                with torch.no_grad():
                    logits = _logits(self.model(images))
                    scores = _of_classes(logits, labels).sum()
                if not found or not scores.requires_grad:
                    raise ValueError("layer must be one whose output the logits depend on, but they don't.")
                (slope,) = torch.autograd.grad(scores, found[-1], allow_unused=True)
        finally:
            handle.remove()
        if slope is None:
            raise ValueError("layer must be one whose output the logits depend on, but they don't.")
        weights = slope.flatten(2).sum(2).float()
        return torch.einsum("bc,bcs->bs", weights, found[-1].detach().flatten(2).float()).reshape(
            len(slope), *slope.shape[2:]
        )


class _InputGradient:
    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model, self.loss = model, loss

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("labels must be given to the loss of input_gradient, but got None.")
        images = plain(checks.tensor("images", images))
        if images.ndim < 3 or not images.is_floating_point():
            raise ValueError(
                "images must be floating point of shape (batch_size, channels, *sides) for input_gradient, but got "
                f"{checks.names([images.dtype])} of shape {tuple(images.shape)}."
            )
        x = images.detach().clone().requires_grad_()
        with _undisturbed(self.model, x), torch.enable_grad():
            loss = self.loss(_logits(self.model(x)), plain(labels)).sum()
            slope = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
        if slope is None:
            raise ValueError("loss must depend on the images, but the loss of these logits does not.")
        return slope.float().square().mean(1).sqrt()


def _network(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    # The wrapper would wait for a backward pass of all parameters.
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _layer(model: nn.Module, layer: Any) -> nn.Module:
    """The module of that name, or the module itself, if it is one of the model."""
    named = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in named or not layer:
            hint = checks.did_you_mean(layer, list(named)[1:])
            raise ValueError(f"layer must be the name of a module of model, but got {layer!r}.{hint and ' ' + hint}")
        return named[layer]
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a module of model or its name, but got {type(layer).__name__}.")
    if all(layer is not module for module in named.values()):
        raise ValueError(f"layer must be a module of model, but this {type(layer).__name__} is none of its modules.")
    return layer


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits, but got {type(output).__name__}.")
    return logits


def _of_classes(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The logit of each sample's class, or of its classes by their weights."""
    if logits.ndim != 2:
        raise ValueError(f"model must return logits (batch_size, num_classes), but got shape {tuple(logits.shape)}.")
    if labels is None:
        return logits.max(1).values
    labels = plain(checks.labels(labels, logits.shape[1], "the number of logits")).to(logits.device)
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must have one entry for each of {logits.shape[0]} samples, but got {labels.shape[0]}."
        )
    if labels.ndim == 2:
        return (logits * labels.to(logits.dtype)).sum(1)
    checks.class_range(labels, logits.shape[1])
    return logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)


@contextmanager
def _undisturbed(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Has a network in evaluation mode, and puts its modules' modes and torch's random numbers back."""
    training = [module for module in model.modules() if module.training]
    devices = [images.device] if images.is_cuda and not step.capturing() else []
    with torch.random.fork_rng(devices):
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True
