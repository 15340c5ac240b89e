"""Triton's interpreter without what it does over and over: less than half of its time.

It prepares triton.language for NumPy at every call of a kernel and of every function in it, and makes and checks the
type of every intermediate result anew. Here it prepares once in a process, and makes and checks each type once. All
that is kept is what pure functions return, and what they refuse they refuse as ever
(operators/test_triton_launch.py). A Triton in which one of these functions is gone, or takes other arguments, keeps its
own, and is slower.
"""

from __future__ import annotations

import inspect

ORIGINALS = {}  # what was replaced, by name


def speed_up():
    """In this process, where kernels are interpreted."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    for owner, name, arguments, made_of in (
        (interpreter, "_patch_lang", "fn", _prepared_once),
        (interpreter, "_get_np_dtype", "tt_dtype", _kept_by_name),
        (core.block_type, "__init__", "self element_ty shape", _one_of_each),
        (core.tensor, "__init__", "self handle type", _described_once),
        (TritonSemantic, "computation_type_impl", "self a_ty a_is_scalar b_ty b_is_scalar div_or_mod", _promoted_once),
        (TritonSemantic, "broadcast_impl_value", "self lhs rhs", _broadcast_if_shapes_differ),
    ):
        function = vars(owner).get(name)
        if function is not None and list(inspect.signature(function).parameters) == arguments.split():
            ORIGINALS[f"{owner.__name__.rpartition('.')[2]}.{name}"] = function
            setattr(owner, name, made_of(function))


class _Prepared:
    """In the place of the scope that puts triton.language back as it was."""

    def restore(self):
        pass


def _prepared_once(prepare):
    functions, modules = set(), set()

    def prepared(fn):
        if fn not in functions:
            functions.add(fn)
            names = frozenset(
                n for n, module in fn.__globals__.items() if getattr(module, "__package__", "") == "triton.language"
            )
            if names not in modules:
                prepare(fn)
                modules.add(names)
        return _Prepared()

    return prepared


def _kept_by_name(numpy_type):
    kept = {}

    def kept_by_name(tt_dtype):
        name = tt_dtype.name
        if name not in kept:
            kept[name] = numpy_type(tt_dtype)
        return kept[name]

    return kept_by_name


def _one_of_each(init):
    """Blocks of the same elements and shape have the same type object."""
    from triton.language import core

    kept = {}

    def new(cls, element_ty, shape):
        if cls is core.block_type and isinstance(shape, (list, core.tuple)):
            sizes = [n.value if isinstance(n, core.constexpr) else n for n in shape]
            if all(type(n) is int for n in sizes):
                key = (type(element_ty), element_ty.name, getattr(element_ty, "address_space", None), *sizes)
                if key not in kept:
                    made = object.__new__(cls)
                    init(made, element_ty, shape)  # a shape that it refuses is not kept
                    kept[key] = made
                return kept[key]
        return object.__new__(cls)

    def init_if_new(self, element_ty, shape):
        if not vars(self):
            init(self, element_ty, shape)

    core.block_type.__new__ = new
    return init_if_new


def _described_once(init):
    """What a tensor says of its type is found once for each type object."""

    def described(self, handle, type):
        found = vars(type).get("_of_tensors")
        if found is None:
            init(self, handle, type)
            type._of_tensors = {name: value for name, value in vars(self).items() if name != "handle"}
        else:
            vars(self).update(found)
            self.handle = handle

    return described


def _promoted_once(promote):
    kept = {}

    def promoted(self, a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod):
        key = (a_ty.name, a_is_scalar, b_ty.name, b_is_scalar, div_or_mod)
        if key not in kept:
            kept[key] = promote(self, a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod)
        return kept[key]

    return promoted


def _broadcast_if_shapes_differ(broadcast):
    def broadcast_if_shapes_differ(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        if a.is_block() and b.is_block() and a.shape.values == b.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_if_shapes_differ
