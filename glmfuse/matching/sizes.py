"""What is known of the model's symbolic sizes, asked without adding a guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_ANY_SIZE: Final = 7


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What is known of the model's symbolic sizes; asking never adds a guard."""

    shape_env: ShapeEnv | None = None

    def hint(self, symbol: sympy.Symbol) -> int:
        """The size that the model was traced with, or any where it has none."""
        known = _hints_of(self.shape_env).get(symbol)
        return _ANY_SIZE if known is None else int(known)

    def fulfil(self, condition: sympy.Basic) -> bool:
        """Whether a condition on sizes holds for certain."""
        if self.shape_env is None or not condition.free_symbols:
            return condition == sympy.true
        return self.shape_env._maybe_evaluate_static(condition) == sympy.true


def _hints_of(shape_env: ShapeEnv | None) -> Mapping[sympy.Symbol, Any]:
    """The sizes that tracing saw; torch 2.12 and older have them under the shorter name."""
    if shape_env is None:
        return {}
    found: Mapping[sympy.Symbol, Any] | None = getattr(shape_env, "backed_var_to_val", None)
    return shape_env.var_to_val if found is None else found


NO_SIZES = ModelSizes()
