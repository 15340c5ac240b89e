"""fusedmix: Mixup, CutMix, HMix, GMix and their relatives, for images and labels of a batch.

Two halves: modules that sample a plan and apply it (`mixer = fusedmix.CutMix(num_classes=1000)`), and functions that
apply any plan (`fusedmix.mix`, `mix_`, `mix_labels`, `mix_masks`, `mix_cross_entropy`,
`mix_binary_cross_entropy`).

PyTorch is imported when the first of these names is used, so that `fusedmix --help` need not wait for it. Where PyTorch
is imported already, everything is there at once, operators (`torch.ops.fusedmix_...`) included.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from fusedmix.version import __version__ as __version__

if TYPE_CHECKING or "torch" in sys.modules:
    from fusedmix.api import *  # noqa: F403
    from fusedmix.api import __all__ as __all__
    from fusedmix.transforms import *  # noqa: F403 (that these are in api's __all__ mypy does not see)

if not TYPE_CHECKING:  # which would take it that any name may be asked for

    def __getattr__(name: str) -> Any:
        """A module of the package, or a public name, that nobody has asked for yet."""
        if name == "__all__" or not name.startswith("__"):
            if importlib.util.find_spec(f"fusedmix.{name}") is not None:
                return importlib.import_module(f"fusedmix.{name}")
            api = importlib.import_module("fusedmix.api")
            globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(importlib.import_module("fusedmix.api").__all__)
