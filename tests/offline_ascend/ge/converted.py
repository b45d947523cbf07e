"""The GE graph that torchair makes of a function; CANN would compile it, here it is only looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

_NO_OPERATORS = ("Data", "NetOutput", "Const")


class Converted(Exception):  # noqa: N818
    """Thrown where CANN would be asked to compile the graph."""


def ge_operators(
    function: Callable[..., Any], tensors: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The types of the GE graph's operators, in order."""
    import torchair
    import torchair.npu_fx_compiler as compiler

    graphs: list[Any] = []
    convert = compiler._NpuFxCompiler._gen_compiled_gm

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        graphs.append(convert(self, *args, **kwargs).graph)
        raise Converted

    with monkeypatch.context() as patch:
        patch.setattr(compiler._NpuFxCompiler, "_gen_compiled_gm", stop)
        compiled = torch.compile(function, backend=torchair.get_npu_backend(), fullgraph=True, dynamic=False)
        with pytest.raises(Exception, match=Converted.__name__):
            compiled(**tensors)
    return [op.type for op in graphs[0].op if op.type not in _NO_OPERATORS]
