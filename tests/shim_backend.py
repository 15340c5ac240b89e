"""The CUDA backend as functions on CPU tensors: csrc/cuda/step.cpp and the kernels, run by csrc/shim, which logs every
byte and fails on a race.

`Shim` has the operators of a backend (fusedmix/backends/reference.py). After a call it knows the shape of the launches,
and the log what they did. `on_host` says of a plan that it is: it then travels as from the CPU to a GPU.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from fusedmix import erasing
from fusedmix.arguments import MaskArguments, PixelLossArguments, compute_dtype
from fusedmix.backends import reference
from fusedmix.finishing import FinishArguments
from fusedmix.masks.family import WORDS
from fusedmix.methods import Families, Pairing, Per, Reduction
from fusedmix.spec import families as families_of
from shim_build import build

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = [CSRC / "shim" / "kernels.cpp", *sorted((CSRC / "cuda").glob("*.cpp")), *sorted((CSRC / "cuda").glob("*.cu"))]
PLAN = {
    "partner": ((), torch.int64),
    "lam": ((), torch.float32),
    "weight": ((), torch.float64),
    "masks": ((WORDS,), torch.int32),
}


def span_of(x):
    """How many elements lie between the first and the last of a tensor, both counted."""
    return 1 + sum(stride * (n - 1) for stride, n in zip(x.stride(), x.shape, strict=True))


PIXELS = len(PixelLossArguments._fields)


class Shim:
    """The operators, on a chip of so many multiprocessors, where a block may have so many bytes of shared memory."""

    def __init__(self, multiprocessors=2):
        self.module = build("fusedmix_cuda_shim", SOURCES)
        self.multiprocessors = multiprocessors
        self.shared_bytes = self.module.limits().shared_bytes
        self.memory = None  # of the last call, besides its tensors
        self.shape = None
        self._watched = []

    # ---- the log

    def watch(self, name, tensor, writable=True, initialised=True):
        """Registers the memory that a tensor, if there is one, spans."""
        if tensor is None or tensor.numel() == 0:
            return
        self.module.watch(tensor.data_ptr(), span_of(tensor) * tensor.element_size(), name, writable, initialised)
        self._watched.append(tensor)  # its memory must not become another one's

    def made(self, name, *shape, dtype=torch.float32):
        """Memory that a kernel is to write."""
        t = torch.full(shape, math.nan if dtype.is_floating_point else -77, dtype=dtype)
        self.watch(name, t, initialised=False)
        return t

    def chip(self):
        """Memory for a call, on the chip as it is now."""
        limits = self.module.limits()
        limits.shared_bytes = self.shared_bytes
        self.module.set_limits(limits)
        return self.module.Memory(self.multiprocessors)

    def forget(self):
        self.memory = self.chip()
        self.module.forget_all()
        self.module.reset_log()
        self._watched.clear()

    def launches(self):
        """What the launches of the last call did, by kernel: [("sample", {...}), ("mix", {...})]."""
        found = []
        for launch in self.module.launches():
            (name,) = re.findall(r"(\w+)Args$", launch["arguments"])
            found.append((name.lower(), launch))
        return found

    def kernels(self):
        """The kernels of the last call."""
        return [name for name, _ in self.launches()]

    def counts(self, name, x):
        """How often each element of x was read and written, two tensors of its shape.

        Every byte of an element must have been treated alike, and nothing may have been touched between the elements.
        """
        size = x.element_size()
        where = torch.zeros(x.shape, dtype=torch.int64)
        for d, (n, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
            where += (torch.arange(n) * stride).reshape([-1 if d == e else 1 for e in range(x.ndim)])
        found = []
        for counted in self.module.counts(name):
            of_bytes = torch.from_numpy(counted.astype("int64")).reshape(-1, size)
            assert (of_bytes == of_bytes[:, :1]).all(), "parts of elements"
            between = torch.ones(of_bytes.shape[0], dtype=torch.bool)
            between[where.flatten()] = False
            assert not of_bytes[between].any(), "memory between the elements"
            found.append(of_bytes[:, 0][where])
        return found

    # ---- arguments

    def shape_of(self, images, pairing, families, **changes):
        """The shape that the host program chooses, with what is to be otherwise."""
        shape = self.module.shape_of(self.chip(), images, int(pairing), int(families))
        for name, value in changes.items():
            setattr(shape, name, value)
        if changes and shape.way == self.module.Way.TILE:
            src, *_ = images
            column = len(src) * shape.width * src.element_size() << shape.log_column
            shape.shared_bytes = changes.get("shared_bytes", column)
        return shape

    def plan(self, tensors, size=(), on_host=False, new=False, **hints):
        """A plan as the host program is given it. `new`: a kernel is to write it."""
        tensors = {name: None if t is None else t.contiguous() for name, t in tensors.items()}
        if not on_host:
            for name, t in tensors.items():
                self.watch(name, t, writable=new, initialised=not new)
        return {
            **dict.fromkeys((*PLAN, "pixels", "draws")),
            **tensors,
            "on_host": {*tensors} if on_host else {},
            "batch": next((len(t) for t in tensors.values() if t is not None), 0),
            "side": [1] * (3 - len(size)) + list(size),
            **dict.fromkeys(("families", "pairing", "per", "shared", "weight_shared"), 0),
            **{name: int(hint) for name, hint in hints.items()},
        }

    def watch_images(self, dst, src, other=None):
        """In place what is written must not be read after that in the same launch, nor written again."""
        self.forget()
        self.watch("x", src, writable=src is dst)
        if other is not src:
            self.watch("other", other, writable=False)
        if src is not dst:
            self.watch("out", dst, initialised=False)
        elif src.numel() > 0:
            self.module.exchange("x")

    def targets(self, y, classes, smoothing):
        """Dense targets, and what the kernel is told of them."""
        dtype = y.dtype if y.ndim == 2 and y.is_floating_point() else torch.float32
        out = self.made("targets", len(y), classes, dtype=dtype)
        self.watch("labels", y, writable=False)
        return out, self.module.Targets(y, out, smoothing)

    # ---- applying a plan

    def mask(self, masks, families, size, per=Per.SAMPLE, pixels=None):
        self.forget()
        out = self.made("out", len(masks), *size)
        plan = self.plan({"masks": masks, "pixels": pixels}, size, per=per, families=families)
        self.module.masks(self.memory, plan, out)
        return out

    def fourier(self, spec, masks, seed, size, per, draws, soft, most_scratch=24 * 2**20):
        self.forget()
        n, pixels = (Per(per).draws(len(masks)) if len(masks) else 0), math.prod(size)
        out = self.made("pixels", n, pixels if soft else -(-pixels // 32), dtype=torch.int16 if soft else torch.int32)
        if not isinstance(seed, int):
            self.watch("seed", seed, writable=False)
        plan = self.plan({"masks": masks}, size, per=per)
        self.module.fourier(self.memory, spec, plan, seed, len(size), int(draws), most_scratch, out)
        return out

    def mix(self, x, *masks, **how):
        out = torch.empty_like(x)
        self.mix_into(out, x, *masks, **how)
        return out

    def mix_(self, x, *masks, **how):
        self.mix_into(x, x, *masks, **how)

    def mix_adjoint(self, grad, *masks, **how):
        out = torch.empty_like(grad)
        self.mix_into(out, grad, *masks, adjoint=True, **how)
        return out

    def mix_with(self, x, other, *masks, **how):
        out = torch.empty_like(x)
        self.mix_into(out, x, *masks, other=other, **how)
        return out

    def mix_with_(self, x, other, *masks, **how):
        self.mix_into(x, x, *masks, other=other, **how)

    def mix_into(
        self, dst, src, partner, masks, families, ndim, pairing, per, pixels=None, *, adjoint=False, other=None,
        on_host=False, shape=None, fresh=True,
    ):  # fmt: skip
        """mix (in place where dst is src) or its adjoint, or mix_with.

        Args:
            shape: what is to be otherwise than in the shape that is chosen, by the names of its fields.
            fresh: whether the images are yet to be watched.
        """
        if fresh:
            self.watch_images(dst, src, other)
        tensors = {"partner": partner, "masks": masks, "pixels": pixels}
        hints = {"families": families, "pairing": pairing, "per": per, "shared": int(per) == Per.BATCH}
        plan = self.plan(tensors, src.shape[src.ndim - ndim :], on_host, **hints)
        images = (src, dst, ndim, adjoint, other)
        if shape is None:
            permutation = other is None and (src is dst or adjoint)
            self.shape = self.module.apply(self.memory, images, plan, permutation)
        else:
            self.shape = self.shape_of(images, pairing, families, **shape)
            self.module.mix(self.memory, images, plan, self.shape)

    def paste(self, x, partner, boxes, crops, resize, on_host=False):
        patches = {"partner": partner, "boxes": boxes, "crops": crops}
        return self.gathered(self.module.paste, x, patches, boxes.shape[2] // 2, int(resize), on_host)

    def blend(self, x, partner, weight, on_host=False):
        return self.gathered(self.module.blend, x, {"partner": partner, "weight": weight}, 0, on_host)

    def gathered(self, launch, x, tensors, ndim, *options):
        """A new batch from several samples of x. The last of the options: whether the plan is on the host."""
        out = torch.empty_like(x)
        self.watch_images(out, x)
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        if not options[-1]:
            for name, t in tensors.items():
                self.watch(name, t, writable=False)
        self.shape = launch(self.memory, (x, out, ndim, False), *tensors.values(), *options)
        return out

    def mix_labels(self, labels, partner, weight, num_classes, label_smoothing, on_host=False):
        self.forget()
        plan = self.plan({"partner": partner, "weight": weight}, on_host=on_host, pairing=Pairing.RANDOM)
        out, targets = self.targets(labels, num_classes, label_smoothing)
        self.module.mix_labels(self.memory, plan, targets)
        return out

    def border_costs(self, x, partner, scale, cells):
        self.forget()
        for name, t in {"x": x, "partner": partner, "scale": scale}.items():
            self.watch(name, t, writable=False)
        h, w = cells
        right, down = self.made("right", 4, len(x), h, w - 1), self.made("down", 4, len(x), h - 1, w)
        self.module.border_costs(self.memory, x, partner, scale, cells, right, down)
        return right, down

    def label_grid(self, unary, right, down):
        self.forget()
        for name, t in {"unary": unary, "right": right, "down": down}.items():
            self.watch(name, t, writable=False)
        out = self.made("labels", *unary.shape[:3], dtype=torch.int32)
        self.module.label_grid(self.memory, unary, right, down, out)
        return out

    # ---- finishing a batch

    def finish(self, x, *how, on_host=False):
        return self.finished(x, FinishArguments(*how), None, on_host)

    def finish_mix(self, x, *args, on_host=False):
        how = len(FinishArguments._fields)
        return self.finished(x, FinishArguments(*args[:how]), MaskArguments(*args[how:]), on_host)

    def finished(self, x, how, masks, on_host):
        """finish, or with masks finish_mix."""
        self.forget()
        planes = x.permute(0, 3, 1, 2) if how.nhwc else x
        layout = torch.channels_last if how.channels_last else torch.contiguous_format
        out = torch.empty(planes.shape, dtype=how.dtype, memory_format=layout)
        self.watch("x", planes, writable=False)
        self.watch("affine", how.affine, writable=False)
        self.watch("out", out, initialised=False)
        tensors, hints = {"draws": how.draws}, {}
        if masks is not None:
            tensors |= {"partner": masks.partner, "masks": masks.masks, "pixels": masks.pixels}
            hints = {name: getattr(masks, name) for name in ("families", "pairing", "per")}
            hints["shared"] = int(masks.per) == Per.BATCH
        plan = self.plan(tensors, planes.shape[2:], on_host, batch=len(x), **hints)
        told = {**how._asdict(), "constant": masks is not None and masks.ndim == 0}
        self.shape = self.module.finish(self.memory, planes, out, told, plan, masks is not None)
        return out

    def draw_finish(self, chances, holes, seed, batch_size, height, width, _):
        """`seed`: a tensor where the kernel reads it, or a number that travels with it."""
        self.forget()
        if not isinstance(seed, int):
            self.watch("seed", seed, writable=False)
        out = self.made("draws", batch_size, erasing.HEAD + erasing.PER_HOLE * holes, dtype=torch.int32)
        self.module.draw_finish(self.memory, chances.tolist(), seed, (height, width), out)
        return out

    # ---- label losses

    def cross_entropy(self, *args, on_host=False):
        *mixed, smoothing, ignore, reduction = args
        loss = self.loss(*mixed, None, smoothing, None, ignore, on_host)
        return self.reduced(*loss, reduction, reduction == Reduction.MEAN, 1.0)

    def cross_entropy_backward(self, grad, *args, on_host=False):
        *mixed, statistics, scale, smoothing, ignore = args
        loss = self.loss(*mixed, None, smoothing, None, ignore, on_host)
        return self.gradient(*loss, grad, 1.0, scale, statistics)

    def binary_cross_entropy(self, *args, on_host=False):
        *mixed, reduction = args
        loss = self.loss(*mixed, None, on_host)
        return self.reduced(*loss, reduction, False, reference.factor(args[0], reduction))[0]

    def binary_cross_entropy_backward(self, grad, *args, on_host=False):
        *mixed, reduction = args
        loss = self.loss(*mixed, None, on_host)
        return self.gradient(*loss, grad, reference.factor(args[0], reduction), None, None)

    def loss(
        self, logits, labels, partner, weight, pairing, per, class_weight, pos_weight, smoothing, threshold, ignore,
        on_host,
    ):  # fmt: skip
        """What the kernels are told of a loss (cross entropy where there is a class to ignore), and of its plan."""
        self.forget()
        shared = int(per) == Per.BATCH
        plan = self.plan({"partner": partner, "weight": weight}, (), on_host, pairing=pairing, weight_shared=shared)
        tensors = {"logits": logits, "labels": labels, "class_weight": class_weight, "pos_weight": pos_weight}
        for name, t in tensors.items():
            self.watch(name, t, writable=False)
        return {**tensors, "smoothing": smoothing, "threshold": threshold, "ignore": ignore}, plan

    def reduced(self, loss, plan, reduction, counted, factor):
        logits = loss["logits"]
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        shapes = {"losses": (len(logits),), "stats": (len(logits), 2), "out": (), "scale": ()}
        rows, statistics, out, scale = made = [self.made(name, *s, dtype=dtype) for name, s in shapes.items()]
        self.module.loss(self.memory, loss, plan, counted, factor, made)
        return rows if reduction == Reduction.NONE else out, statistics, scale

    def gradient(self, loss, plan, grad, factor, scale, statistics):
        for name, t in (("grad", grad), ("scale", scale), ("stats", statistics)):
            self.watch(name, t, writable=False)
        out = self.made("gradient", *loss["logits"].shape, dtype=loss["logits"].dtype)
        self.module.loss_gradient(self.memory, loss, plan, grad, factor, scale, statistics, out)
        return out

    # ---- the loss of label maps

    def pixel_cross_entropy(self, *args, on_host=False):
        *of, reduction = args[: PIXELS + 1]
        loss, plan, (pixels, compute) = self.pixel_loss(of, args[PIXELS + 1 :], on_host)
        losses = self.made("losses", *pixels, dtype=compute) if reduction == Reduction.NONE else None
        shapes = {"logsumexp": pixels, "out": (), "scale": ()}
        made = [self.made(name, *shape, dtype=compute) for name, shape in shapes.items()]
        self.module.pixel_loss(self.memory, loss, plan, reduction == Reduction.MEAN, (losses, *made))
        logsumexp, out, scale = made
        return out if losses is None else losses, logsumexp, scale

    def pixel_cross_entropy_backward(self, grad, *args, on_host=False):
        of, (logsumexp, scale), masks = args[:PIXELS], args[PIXELS : PIXELS + 2], args[PIXELS + 2 :]
        loss, plan, _ = self.pixel_loss(of, masks, on_host)
        grad = grad.contiguous()
        for name, t in (("grad", grad), ("scale", scale), ("logsumexp", logsumexp)):
            self.watch(name, t, writable=False)
        out = torch.empty_like(loss["logits"]).fill_(torch.nan)
        self.watch("gradient", out, initialised=False)
        self.module.pixel_gradient(self.memory, loss, plan, grad, logsumexp, scale, out)
        return out

    def pixel_loss(self, of, masks, on_host):
        """What the kernels are told of the loss and of its plan, and the shape and the dtype of numbers of pixels."""
        self.forget()
        of, masks = PixelLossArguments(*of), MaskArguments(*masks)
        size = of.logits.shape[2:]
        hints = {name: getattr(masks, name) for name in ("families", "pairing", "per")}
        tensors = {name: getattr(masks, name) for name in ("partner", "masks", "pixels")}
        plan = self.plan(tensors, size, on_host, **hints, shared=int(masks.per) == Per.BATCH)
        loss = of._replace(maps=of.maps.contiguous())._asdict()
        for name in ("logits", "maps", "class_weight"):
            self.watch(name, loss[name], writable=False)
        pixels = (len(of.logits), *size), compute_dtype(of.logits)
        return {**loss, "side": plan["side"]}, plan, pixels

    # ---- sampling

    def plan_of(self, request, tensors, **where):
        """The plan of a request."""
        spec, _, size, pairing, per, _, lam, _ = request
        shared = int(per) == Per.BATCH and not (lam is not None and lam.ndim)
        hints = {"families": families_of(spec), "pairing": pairing, "shared": shared, "weight_shared": shared}
        return self.plan(tensors, size, **where, **hints)

    def drawn(self, request, seed):
        """A request and the plan that it is to become; what the kernel reads is watched."""
        spec, batch, size, pairing, per, p, lam, labels = request
        labels = None if labels is None else labels.clone()  # watched apart from what the targets are made of
        for name, t in {"given lam": lam, "classes": labels, "seed": None if isinstance(seed, int) else seed}.items():
            self.watch(name, t, writable=False)
        made = {name: torch.full((batch, *shape), -77, dtype=dtype) for name, (shape, dtype) in PLAN.items()}
        return (spec, batch, size, int(pairing), int(per), p, lam, labels), self.plan_of(request, made, new=True)

    def sample(self, *args):
        """From a request's fields and a seed: a tensor where the kernel reads it, or a number that travels with it."""
        self.forget()
        *request, seed = args
        request, plan = self.drawn(request, seed)
        self.module.sample(self.memory, request, seed, plan)
        return tuple(map(plan.get, PLAN))

    # ---- a whole step

    def mix_batch(self, x, y, request, seed, num_classes, label_smoothing):
        """Device sampling: the mixed images, their targets, the plan."""
        out = torch.empty_like(x)
        return out, *self.step(out, x, y, request, num_classes, label_smoothing, seed=seed)

    def mix_batch_(self, x, y, request, seed, num_classes, label_smoothing):
        """The same in place: the targets and the plan."""
        return self.step(x, x, y, request, num_classes, label_smoothing, seed=seed)

    def step(self, dst, src, y, request, num_classes, label_smoothing, *, seed=None, made=None, on_host=True):
        """Targets and plan. With a seed the plan is sampled; else it is `made`, which was drawn on the host."""
        self.watch_images(dst, src)
        if seed is not None:
            request, plan = self.drawn(request, seed)
        else:
            plan = self.plan_of(request, dict(zip(PLAN, made, strict=True)), on_host=on_host)
        out, targets = self.targets(y, num_classes, label_smoothing)
        images = (src, dst, 0 if plan["families"] == Families.CONSTANTS else len(request[2]), False)
        self.shape = self.module.step(self.memory, images, request, seed, plan, targets)
        return out, *map(plan.get, PLAN)
