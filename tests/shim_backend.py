"""The CUDA kernels as functions on CPU tensors: run by csrc/shim, which logs every byte and fails on a race.

`Shim` has the operators of a backend (fusedmix/backends/reference.py) and does what csrc/binding/cuda.cpp does: how plans
travel, what is staged, what is launched.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from shim_build import build

from fusedmix.methods import Column, Method, Pairing, Per

CSRC = Path(__file__).resolve().parents[1] / "csrc"
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
SOURCES = [CSRC / "shim" / "kernels.cpp", CSRC / "cuda" / "plan_walk.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]


def padded(size):
    return [1] * (3 - len(size)) + list(size)


class Shim:
    """The operators. `launches` counts those of the last call."""

    def __init__(self, multiprocessors=2):
        self.module = build("fusedmix_cuda_shim", SOURCES)
        self.multiprocessors = multiprocessors

    # ---- the log

    def watch(self, name, tensor, writable=True, initialised=True):
        """Registers the memory that a tensor spans."""
        if tensor.numel() == 0:
            return
        span = 1 + sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
        self.module.watch(tensor.data_ptr(), span * tensor.element_size(), name, writable, initialised)

    def forget(self):
        self.module.forget_all()
        self.module.reset_log()

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

    def plan(self, partner, kind, geometry, value, pairing, per, weight=None, travels=False):
        """The plan's addresses, the bytes that travel with the kernel, and the address of the weights."""
        shared = int(per) == Per.BATCH
        tensors = {"value": value, "geometry": geometry, "kind": kind}
        if shared:
            tensors = {name: t[:1] for name, t in tensors.items()}
        if int(pairing) > Pairing.FLIP:
            tensors["partner"] = partner
        if weight is not None:
            tensors["weight"] = weight
        found = {"pairing": int(pairing), "shared": shared, "partner": 0}
        if not travels:
            for name, t in tensors.items():
                self.watch(name, t, writable=False)
                found[name] = t.data_ptr()
            return found, None
        blob = b""
        for name, t in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
            found[name] = len(blob)
            blob += struct.pack(
                f"{t.numel() * t.element_size()}s", bytes(t.contiguous().view(torch.uint8).flatten().tolist())
            )
        return found, blob

    def targets(self, y, classes, smoothing, weight, shared=False):
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

    # ---- operators

    def mask(self, kind, geometry, value, size):
        out = torch.full((kind.shape[0], *size), math.nan)
        self.forget()
        plan, _ = self.plan(torch.empty(0, dtype=torch.int64), kind, geometry, value, Pairing.ROLL, Per.SAMPLE)
        self.watch("out", out, initialised=False)
        self.module.masks(plan, kind.shape[0], padded(size), out.data_ptr())
        return out

    def mix(self, x, *masks, travels=False):
        out = torch.empty_like(x)
        self._mix(x, out, masks, travels=travels)
        return out

    def mix_(self, x, *masks, travels=False):
        self._mix(x, x, masks, travels=travels)

    def mix_adjoint(self, x, *masks, travels=False):
        out = torch.empty_like(x)
        self._mix(x, out, masks, adjoint=True, travels=travels)
        return out

    def _mix(self, src, dst, masks, adjoint=False, travels=False):
        partner, kind, geometry, value, ndim, pairing, per = masks
        self.forget()
        if src.numel() == 0:
            return
        self.watch("x", src, writable=src is dst)
        if src is not dst:
            self.watch("out", dst, initialised=False)
        plan, blob = self.plan(partner, kind, geometry, value, pairing, per, travels=travels)
        images = self.images(src, dst, ndim, adjoint)
        walk = self.module.plan_walk(images, int(pairing), self.multiprocessors)
        staged = self.scratch(walk)
        if staged is not None:
            self.module.stage(images, walk, staged.data_ptr())
        self.module.mix(images, plan, blob, walk, 0 if staged is None else staged.data_ptr(), None)
        self.walk = walk

    def scratch(self, walk):
        if walk["staged_bytes"] == 0:
            return None
        staged = torch.empty(walk["staged_bytes"] + 16, dtype=torch.uint8)
        staged = staged[-staged.data_ptr() % 16 :][: walk["staged_bytes"]]
        self.watch("staged", staged, initialised=False)
        return staged

    def mix_labels(self, labels, partner, weight, num_classes, label_smoothing, travels=False):
        self.forget()
        kind, geometry, value = (torch.zeros(1, dtype=torch.int32) for _ in range(3))  # not read
        plan, blob = self.plan(partner, kind, geometry, value, Pairing.RANDOM, Per.SAMPLE, weight, travels)
        out, targets = self.targets(labels, num_classes, label_smoothing, plan["weight"])
        walk = dict.fromkeys(("width", "columns", "tiles", "units", "span", "staged_bytes"), 0) | {"heads": False}
        if out.numel():
            self.module.mix(None, plan, blob, walk, 0, targets)
        return out

    def sample(self, spec, batch_size, size, pairing, per, p, lam, labels, seed, images=None, walk=None, staged=0):
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
        if images is None:
            self.forget()
        for name, t in zip(("partner", "lam", "weight", "kind", "geometry", "value"), made, strict=True):
            self.watch(f"made {name}", t, initialised=False)
        scratch = torch.zeros(batch_size, dtype=torch.int32)
        self.watch("scratch", scratch, initialised=False)
        self.watch("seed", seed, writable=False)
        if lam is not None:
            self.watch("lam", lam, writable=False)
        if labels is not None:
            labels = labels.clone()  # which may be what the targets are made of: watched once more
            self.watch("classes", labels, writable=False)
        if spec.shape[0] > 16:
            self.watch("rows", spec, writable=False)
        request = {
            "rows": spec.data_ptr(),
            "methods": spec.shape[0],
            "device_rows": spec.data_ptr() if spec.shape[0] > 16 else 0,
            "batch": batch_size,
            "ndim": len(size),
            "size": padded(size),
            "pairing": int(pairing),
            "per": int(per),
            "p": p,
            "lam": 0 if lam is None else lam.data_ptr(),
            "lam_each": lam is not None and lam.ndim == 1,
            "classes": 0 if labels is None else labels.data_ptr(),
            "seed": seed.data_ptr(),
            "seed_value": 0,
            "scratch": scratch.data_ptr(),
            "out": [t.data_ptr() for t in made],
        }
        if walk is None:
            walk = dict.fromkeys(("width", "columns", "tiles", "units", "span", "staged_bytes"), 0) | {"heads": False}
        self.module.sample(request, images, walk, staged)
        return tuple(made)

    def mix_batch_(self, x, y, request, seed, num_classes, label_smoothing):
        """Device sampling, in place: two launches."""
        spec, _, size, pairing, per, *_, lam, _ = request
        self.forget()
        self.watch("x", x)
        centred = any(Method(int(m)).has_centre for m in spec[:, Column.METHOD].tolist())
        images = self.images(x, x, len(size) if centred else 0)
        walk = self.module.plan_walk(images, int(pairing), self.multiprocessors)
        staged = self.scratch(walk)
        address = 0 if staged is None else staged.data_ptr()
        made = self.sample(*request, seed, images=images, walk=walk, staged=address)
        partner, _, weight, kind, geometry, value = made
        each = Per.SAMPLE if lam is not None and lam.ndim else per
        plan = {
            "partner": partner.data_ptr(),
            "kind": kind.data_ptr(),
            "geometry": geometry.data_ptr(),
            "value": value.data_ptr(),
            "pairing": int(pairing),
            "shared": int(each) == Per.BATCH,
        }
        targets, described = self.targets(y, num_classes, label_smoothing, weight.data_ptr())
        self.module.mix(images, plan, None, walk, address, described)
        self.walk = walk
        return targets, *made
