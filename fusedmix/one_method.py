"""The bases of the mixing modules that have one method each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fusedmix import checks
from fusedmix.methods import Column, Method
from fusedmix.module import MixTransform
from fusedmix.options import VariantName
from fusedmix.spec import drawn_for, spec_row


class OneMethod(MixTransform):
    """A module of one method, by the authors' code or by the paper where the two differ."""

    lam_range: tuple[float, float] | None
    variant: VariantName

    _formulas: ClassVar[dict[str, Method]]  # the formula of each variant
    _in_sets: ClassVar[bool] = True  # whether RandomMix may hold it

    _default_variant: ClassVar[VariantName] = "released"

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        alpha: float = 1.0,
        ratio: float = 1.0,
        lam: float = math.nan,
        **columns: float,  # other columns of the spec, by their names
    ) -> None:
        spec = spec_row(
            self._formulas[self._default_variant],
            alpha=checks.number("alpha", alpha, 0.0, open_low=True),
            lam=lam,
            ratio=checks.number("ratio", ratio, 0.0, 1.0),
            **columns,  # type: ignore[arg-type]
        )
        super().__init__(spec, options)

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.__dict__["variant"] = given.get("variant") or self._default_variant
        self._spec[0, Column.METHOD] = self._formulas[self.variant]
        self._spec[0, Column.LAM_MIN], self._spec[0, Column.LAM_MAX] = self.lam_range or (0.0, 1.0)

    def _set_columns(self, **columns: float) -> None:
        """Sets columns of the spec, by name, and what is drawn for them."""
        for name, value in columns.items():
            self._spec[0, Column[name.upper()]] = value
        self._spec[0, Column.DRAWS] = drawn_for(self._spec[0].tolist())

    def _describe(self) -> dict[str, Any]:
        differ = len(set(self._formulas.values())) > 1
        return {
            **({"variant": self.variant} if differ else {}),
            **({"lam_range": self.lam_range} if self.lam_range is not None else {}),
        }


class BetaMethod(OneMethod):
    """A method whose λ is drawn."""

    @property
    def alpha(self) -> float:
        """α of λ ~ Beta(α, α). May be changed between steps, compiled ones too; 0 switches mixing off (λ = 1)."""
        return float(self._spec[0, Column.ALPHA])

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._spec[0, Column.ALPHA] = checks.number("alpha", value, 0.0)

    def _describe(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super()._describe()}


class FoldingMethod(BetaMethod):
    """A method whose λ may be folded once it is drawn."""

    _folds: ClassVar[bool] = False  # whether it is, if nothing is said

    def __init__(self, options: Mapping[str, Any], *, fold: bool, **columns: Any) -> None:
        super().__init__(options, fold=float(checks.boolean("fold", fold)), **columns)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A module that was pickled when this was an attribute.
        fold = next((state[name] for name in ("fold", "_fold") if name in state), None)
        super().__setstate__({name: value for name, value in state.items() if name not in ("fold", "_fold")})
        if fold is not None:
            self.fold = fold

    @property
    def fold(self) -> bool:
        """Whether λ ← max(λ, 1-λ). May be changed between steps, compiled ones too."""
        return bool(self._spec[0, Column.FOLD])

    @fold.setter
    def fold(self, value: bool) -> None:
        self._spec[0, Column.FOLD] = checks.boolean("fold", value)

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), **({"fold": self.fold} if self.fold != self._folds else {})}
