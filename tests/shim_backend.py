"""The CUDA kernels as functions on CPU tensors: run by csrc/shim, which logs every byte and fails on a race.

`Shim` has the operators of a backend (fusedmix/backends/reference.py) and does what csrc/binding/cuda.cpp does: how
plans travel, what is staged, what is launched. After a call it knows the walk, and the log what the launches did.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from fusedmix.backends import reference
from fusedmix.methods import Column, Method, Pairing, Per, Reduction
from shim_build import build

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = [CSRC / "shim" / "kernels.cpp", CSRC / "cuda" / "plan_walk.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4}
LABEL_TYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
)
PLAN = ("partner", "lam", "weight", "kind", "geometry", "value")
NO_WALK = {**dict.fromkeys(("width", "columns", "tiles", "units", "span", "staged_bytes"), 0), "heads": False}
INLINE_ROWS = 16  # methods whose rows travel with the kernel


def padded(size):
    return [1] * (3 - len(size)) + list(size)


def span_of(x):
    """How many elements lie between the first and the last of a tensor, both counted."""
    return 1 + sum(stride * (n - 1) for stride, n in zip(x.stride(), x.shape, strict=True))


class Shim:
    """The operators, on a chip of so many multiprocessors."""

    def __init__(self, multiprocessors=2):
        self.module = build("fusedmix_cuda_shim", SOURCES)
        self.multiprocessors = multiprocessors
        self.walk = None  # of the last call
        self.scratch_bytes = 0  # of the last masks that were made
        self._watched = []

    # ---- the log

    def watch(self, name, tensor, writable=True, initialised=True):
        """Registers the memory that a tensor spans."""
        if tensor.numel() == 0:
            return
        self.module.watch(tensor.data_ptr(), span_of(tensor) * tensor.element_size(), name, writable, initialised)
        self._watched.append(tensor)  # its memory must not become another one's

    def forget(self):
        self.module.forget_all()
        self.module.reset_log()
        self._watched.clear()

    def launches(self):
        """What the launches of the last call did, by kernel: [("stage", {...}), ("mix", {...})]."""
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

    def images(self, src, dst, spatial, adjoint=False):
        return {
            "type": TYPES[src.dtype],
            "src": src.data_ptr(),
            "dst": dst.data_ptr(),
            "sizes": list(src.shape),
            "src_strides": list(src.stride()),
            "dst_strides": list(dst.stride()),
            "spatial": spatial,
            "adjoint": adjoint,
        }

    def plan_walk(self, images, pairing, span=None, heads=True):
        """The walk that the kernels choose; or with that span."""
        walk = self.module.plan_walk(images, int(pairing), self.multiprocessors)
        if span is not None:
            batch, *sample = images["sizes"]
            units = -(-(batch if pairing != Pairing.FLIP else (batch + 1) // 2) // span)
            heads = heads and pairing != Pairing.FLIP
            size = next(dtype.itemsize for dtype, number in TYPES.items() if number == images["type"])
            staged = units * math.prod(sample) * size if heads and images["src"] == images["dst"] else 0
            walk |= {"span": span, "units": units, "heads": heads, "staged_bytes": staged}
        return walk

    def scratch(self, walk):
        """Memory for the heads, or None."""
        if walk["staged_bytes"] == 0:
            return None
        staged = torch.empty(walk["staged_bytes"] + 16, dtype=torch.uint8)
        staged = staged[-staged.data_ptr() % 16 :][: walk["staged_bytes"]]
        self.watch("staged", staged, initialised=False)
        return staged

    def pixels(self, pixels, size, per, batch):
        """Stored masks, as a part of a plan; nothing for None."""
        if pixels is None:
            return {}
        self.watch("pixels", pixels, writable=False)
        bits = pixels.dtype == torch.int32
        found = {"bits": pixels.data_ptr() if bits else 0, "levels": 0 if bits else pixels.data_ptr()}
        return {"pixels": found | {"stride": pixels.shape[1], "side": padded(size), "per": int(per), "batch": batch}}

    def plan(self, partner, kind, geometry, value, pairing, shared, weight=None, travels=False):
        """The plan's addresses, and the bytes that travel with the kernel; None for what no kernel will read.

        `shared`: row 0 serves every sample.
        """
        tensors = {"value": value, "geometry": geometry, "kind": kind, "weight": weight}
        tensors = {name: t[:1] if shared else t for name, t in tensors.items() if t is not None}
        if int(pairing) > Pairing.FLIP and partner is not None:
            tensors["partner"] = partner
        found = {**dict.fromkeys(PLAN, 0), "pairing": int(pairing), "shared": shared}
        if not travels:
            for name, t in tensors.items():
                self.watch(name, t, writable=False)
                found[name] = t.data_ptr()
            return found, None
        blob = b""
        for name, t in sorted(tensors.items(), key=lambda item: -item[1].element_size()):  # so that all are aligned
            found[name] = len(blob)
            blob += t.contiguous().numpy().tobytes()
        return found, blob

    def targets(self, y, classes, smoothing, weight, shared=False):
        """Dense targets, and what the kernel is told of them. `weight`: its address."""
        y = y.view(torch.uint8) if y.dtype == torch.bool else y
        dtype = y.dtype if y.ndim == 2 and y.is_floating_point() else torch.float32
        out = torch.full((y.shape[0], classes), math.nan, dtype=dtype)
        self.watch("labels", y, writable=False)
        self.watch("targets", out, initialised=False)
        return out, {
            "labels": y.data_ptr(),
            "label_type": LABEL_TYPES.index(y.dtype),
            "soft": y.ndim == 2,
            "row_stride": y.stride(0),
            "step": y.stride(1) if y.ndim == 2 else 0,
            "weight": weight,
            "weight_shared": shared,
            "batch": y.shape[0],
            "num_classes": classes,
            "smoothing": smoothing,
            "out": out.data_ptr(),
            "out_type": TYPES[dtype],
        }

    # ---- applying a plan

    def mask(self, kind, geometry, value, size, per=Per.SAMPLE, pixels=None):
        out = torch.full((kind.shape[0], *size), math.nan)
        self.forget()
        plan, _ = self.plan(None, kind, geometry, value, Pairing.ROLL, shared=False)
        plan |= self.pixels(pixels, size, per, kind.shape[0])
        self.watch("out", out, initialised=False)
        self.module.masks(plan, kind.shape[0], padded(size), out.data_ptr())
        return out

    def fourier(self, spec, kind, geometry, value, seed, size, per, draws, soft, most_scratch=24 * 2**20):
        self.forget()
        n, pixels = (Per(per).draws(kind.shape[0]) if kind.shape[0] else 0), math.prod(size)
        out = torch.full((n, pixels), -77, dtype=torch.int16) if soft else torch.full((n, -(-pixels // 32)), -77).int()
        self.watch("pixels", out, initialised=False)
        for name, t in (("kind", kind), ("geometry", geometry), ("value", value)):
            self.watch(name, t, writable=False)
        by_number = isinstance(seed, int)
        if not by_number:
            self.watch("seed", seed, writable=False)
        request = {
            "rows": spec.data_ptr(),
            "methods": spec.shape[0],
            "ndim": len(size),
            "size": padded(size),
            "batch": kind.shape[0],
            "per": int(per),
            "draws": int(draws),
            "seed": 0 if by_number else seed.data_ptr(),
            "seed_value": seed % 2**64 if by_number else 0,
            "kind": kind.data_ptr(),
            "geometry": geometry.data_ptr(),
            "value": value.data_ptr(),
            "bits": 0 if soft else out.data_ptr(),
            "levels": out.data_ptr() if soft else 0,
            "scratch": 0,
            "most_scratch": most_scratch,
        }
        self.scratch_bytes = nbytes = self.module.fourier_scratch(request)
        scratch = torch.empty(nbytes + 16, dtype=torch.uint8)
        scratch = scratch[-scratch.data_ptr() % 16 :][:nbytes]
        self.watch("scratch", scratch, initialised=False)
        if out.numel():
            self.module.fourier(request | {"scratch": scratch.data_ptr()})
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

    def mix_into(
        self,
        dst,
        src,
        partner,
        kind,
        geometry,
        value,
        ndim,
        pairing,
        per,
        pixels=None,
        *,
        adjoint=False,
        travels=False,
        staged=True,
        span=None,
        heads=True,
    ):
        """mix (in place where dst is src) or its adjoint.

        Args:
            travels: the plan inside the kernel's arguments.
            staged: whether the heads are staged where they must be.
            span, heads: of the walk, instead of what plan_walk chooses.
        """
        self.forget()
        if src.numel() == 0:
            return
        self.watch("x", src, writable=src is dst)
        if src is not dst:
            self.watch("out", dst, initialised=False)
        plan, blob = self.plan(partner, kind, geometry, value, pairing, shared=int(per) == Per.BATCH, travels=travels)
        plan |= self.pixels(pixels, src.shape[src.ndim - ndim :], per, kind.shape[0])
        images = self.images(src, dst, ndim, adjoint)
        self.walk = walk = self.plan_walk(images, int(pairing), span, heads)
        scratch = self.scratch(walk) if staged else None
        if scratch is not None:
            self.module.stage(images, walk, scratch.data_ptr())
        self.module.mix(images, plan, blob, walk, 0 if scratch is None else scratch.data_ptr(), None)

    def mix_labels(self, labels, partner, weight, num_classes, label_smoothing, travels=False):
        self.forget()
        plan, blob = self.plan(partner, None, None, None, Pairing.RANDOM, False, weight, travels)
        out, targets = self.targets(labels, num_classes, label_smoothing, plan["weight"])
        if out.numel():
            self.module.mix(None, plan, blob, NO_WALK, 0, targets)
        return out

    # ---- label losses

    def cross_entropy(
        self, logits, labels, partner, weight, pairing, per, class_weight, label_smoothing, ignore_index, reduction,
        travels=False,
    ):  # fmt: skip
        described, plan, blob = self.loss(
            logits, labels, partner, weight, pairing, per, class_weight, None, label_smoothing, travels
        )
        described |= {"ignore": ignore_index}
        return self._loss_rows(described, plan, blob, logits, reduction, reduction == Reduction.MEAN, 1.0)

    def cross_entropy_backward(
        self, grad, logits, labels, partner, weight, pairing, per, class_weight, statistics, scale, label_smoothing,
        ignore_index, travels=False,
    ):  # fmt: skip
        described, plan, blob = self.loss(
            logits, labels, partner, weight, pairing, per, class_weight, None, label_smoothing, travels
        )
        described |= {"ignore": ignore_index}
        return self._loss_gradient(described, plan, blob, grad, logits, 1.0, scale, statistics)

    def binary_cross_entropy(
        self, logits, labels, partner, weight, pairing, per, class_weight, pos_weight, label_smoothing, threshold,
        reduction, travels=False,
    ):  # fmt: skip
        described, plan, blob = self.loss(
            logits, labels, partner, weight, pairing, per, class_weight, pos_weight, label_smoothing, travels
        )
        described |= {"binary": True, "threshold": threshold}
        return self._loss_rows(described, plan, blob, logits, reduction, False, reference.factor(logits, reduction))[0]

    def binary_cross_entropy_backward(
        self, grad, logits, labels, partner, weight, pairing, per, class_weight, pos_weight, label_smoothing,
        threshold, reduction, travels=False,
    ):  # fmt: skip
        described, plan, blob = self.loss(
            logits, labels, partner, weight, pairing, per, class_weight, pos_weight, label_smoothing, travels
        )
        described |= {"binary": True, "threshold": threshold}
        factor = reference.factor(logits, reduction)
        return self._loss_gradient(described, plan, blob, grad, logits, factor, None, None)

    def loss(self, logits, labels, partner, weight, pairing, per, class_weight, pos_weight, smoothing, travels):
        """What the kernels are told of a loss, and of its plan."""
        self.forget()
        labels = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
        one = int(per) == Per.BATCH
        weight = weight[:1] if one else weight
        plan, blob = self.plan(partner, None, None, None, pairing, False, weight, travels)
        tensors = {"logits": logits, "labels": labels, "class_weight": class_weight, "pos_weight": pos_weight}
        for name, t in tensors.items():
            if t is not None:
                self.watch(name, t, writable=False)
        return (
            {
                **{name: 0 if t is None else t.data_ptr() for name, t in tensors.items()},
                "type": TYPES[logits.dtype],
                "row_stride": logits.stride(0),
                "step": logits.stride(1),
                "label_type": LABEL_TYPES.index(labels.dtype),
                "soft": labels.ndim == 2,
                "label_stride": labels.stride(0),
                "label_step": labels.stride(1) if labels.ndim == 2 else 0,
                "weight": plan["weight"],
                "weight_shared": one,
                "batch": logits.shape[0],
                "num_classes": logits.shape[1],
                "smoothing": smoothing,
                "ignore": 0,
                "threshold": None,
                "binary": False,
            },
            plan,
            blob,
        )

    def made(self, name, *shape, dtype):
        """Memory that a kernel is to write."""
        t = torch.full(shape, math.nan, dtype=dtype)
        self.watch(name, t, initialised=False)
        return t

    def _loss_rows(self, described, plan, blob, logits, reduction, counted, factor):
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rows, statistics = (
            self.made(*args, dtype=dtype) for args in (("losses", len(logits)), ("stats", len(logits), 2))
        )
        out, scale = self.made("out", dtype=dtype), self.made("scale", dtype=dtype)
        self.module.loss_rows(described, plan, blob, rows.data_ptr(), statistics.data_ptr())
        self.module.finish_loss(described, rows.data_ptr(), counted, factor, out.data_ptr(), scale.data_ptr())
        return rows if reduction == Reduction.NONE else out, statistics, scale

    def _loss_gradient(self, described, plan, blob, grad, logits, factor, scale, statistics):
        for name, t in (("grad", grad), ("scale", scale), ("stats", statistics)):
            if t is not None:
                self.watch(name, t, writable=False)
        out = self.made("gradient", *logits.shape, dtype=logits.dtype)
        step = grad.stride(0) if grad.ndim else 0
        addresses = (0 if t is None else t.data_ptr() for t in (scale, statistics))
        self.module.loss_gradient(described, plan, blob, grad.data_ptr(), step, factor, *addresses, out.data_ptr())
        return out

    # ---- sampling

    def sample(self, spec, batch_size, size, pairing, per, p, lam, labels, seed):
        """From a seed: a tensor where the kernel reads it, or a number that travels with it."""
        self.forget()
        return self._sample(spec, batch_size, size, pairing, per, p, lam, labels, seed)

    def _sample(self, spec, batch_size, size, pairing, per, p, lam, labels, seed, images=None, walk=NO_WALK, staged=0):
        made = [
            torch.full((batch_size, *shape), -77, dtype=dtype)
            for shape, dtype in (
                ((), torch.int64),
                ((), torch.float32),
                ((), torch.float64),
                ((), torch.int32),
                ((6,), torch.int32),
                ((2,), torch.float32),
            )
        ]
        for name, t in zip(PLAN, made, strict=True):
            self.watch(f"made {name}", t, initialised=False)
        scratch = torch.zeros(batch_size, dtype=torch.int32)
        self.watch("scratch", scratch, initialised=False)
        by_number = isinstance(seed, int)
        if not by_number:
            self.watch("seed", seed, writable=False)
        if lam is not None:
            self.watch("lam", lam, writable=False)
        if labels is not None:
            labels = labels.clone()  # which may be what the targets are made of: watched once more
            self.watch("classes", labels, writable=False)
        on_device = spec.shape[0] > INLINE_ROWS
        if on_device:
            self.watch("rows", spec, writable=False)
        request = {
            "rows": spec.data_ptr(),
            "methods": spec.shape[0],
            "device_rows": spec.data_ptr() if on_device else 0,
            "batch": batch_size,
            "ndim": len(size),
            "size": padded(size),
            "pairing": int(pairing),
            "per": int(per),
            "p": p,
            "lam": 0 if lam is None else lam.data_ptr(),
            "lam_each": lam is not None and lam.ndim == 1,
            "classes": 0 if labels is None else labels.data_ptr(),
            "seed": 0 if by_number else seed.data_ptr(),
            "seed_value": seed % 2**64 if by_number else 0,
            "scratch": scratch.data_ptr() if int(pairing) == Pairing.CROSS_CLASS else 0,
            "out": [t.data_ptr() for t in made],
        }
        self.module.sample(request, images, walk, staged)
        return tuple(made)

    # ---- a whole step

    def mix_batch(self, x, y, request, seed, num_classes, label_smoothing):
        """Device sampling: the mixed images, their targets, the plan."""
        out = torch.empty_like(x)
        return out, *self.step(out, x, y, request, num_classes, label_smoothing, seed=seed)

    def mix_batch_(self, x, y, request, seed, num_classes, label_smoothing):
        """The same in place: the targets and the plan."""
        return self.step(x, x, y, request, num_classes, label_smoothing, seed=seed)

    def step(self, dst, src, y, request, num_classes, label_smoothing, *, seed=None, made=None, travels=True):
        """Images and targets. With a seed the plan is sampled; else it is `made`, which was drawn on the host."""
        spec, _, size, pairing, per, *_, lam, _ = request
        self.forget()
        self.watch("x", src, writable=src is dst)
        if src is not dst:
            self.watch("out", dst, initialised=False)
        centred = any(Method(int(m)).has_centre for m in spec[:, Column.METHOD].tolist())
        images = self.images(src, dst, len(size) if centred else 0)
        self.walk = walk = self.plan_walk(images, int(pairing))
        scratch = self.scratch(walk)
        heads = 0 if scratch is None else scratch.data_ptr()
        shared = int(per) == Per.BATCH and not (lam is not None and lam.ndim)
        if seed is not None:
            made = self._sample(*request, seed, images, walk, heads)
            plan = {name: t.data_ptr() for name, t in zip(PLAN, made, strict=True)}
            plan |= {"pairing": int(pairing), "shared": shared}
            blob = None
        else:
            if scratch is not None:
                self.module.stage(images, walk, heads)
            partner, _, weight, kind, geometry, value = made
            plan, blob = self.plan(partner, kind, geometry, value, pairing, shared, weight, travels)
        targets, described = self.targets(y, num_classes, label_smoothing, plan["weight"], shared)
        self.module.mix(images, plan, blob, walk, heads, described)
        return targets, *made
