"""Whether a site's result may be written over the tensor that it updates, and if not, why.

A functional graph updates an input by a copy of it, which it copies back at its end. The copy is not needed
where nothing else can tell: nobody reads the old value, and nobody keeps the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.memory import origin, readers, written_by
from glmfuse.canonicalize.schema import is_write
from glmfuse.matching.check import Site
from glmfuse.matching.cone import tensor_inputs
from glmfuse.matching.layout import Layout


@dataclass(frozen=True, slots=True)
class Overwrite:
    """The result may be written over the argument. write_back: the copy into an input that is then idle."""

    write_back: fx.Node | None


def overwrite(site: Site) -> Overwrite | str:
    """That the update may happen in place, or why not."""
    updated = site.inputs[str(site.match.pattern.updates)]
    assert updated is not None
    (results,) = site.cone.outputs
    if len(results) > 1:
        return f"the result is made twice, as {results[0].name} and {results[1].name}"
    (result,) = results
    if not Layout.of(updated.meta["val"]).is_alike(result):
        return f"{updated.name} lies in memory as {Layout.of(updated.meta['val'])}, the result does not"
    if (reason := _read(updated, result, site)) is not None:
        return reason
    if updated.op == "placeholder":
        return _kept(updated, result) or _write_back(updated, result)
    return Overwrite(None) if _is_filled(updated) else f"{updated.name} may lie in another tensor's memory"


def _is_filled(node: fx.Node) -> bool:
    """Whether the tensor is made in the graph of numbers alone, as zeros are: no other value can share it."""
    return node.op == "call_function" and isinstance(node.target, OpOverload) and not any(tensor_inputs(node))


def _read(updated: fx.Node, result: fx.Node, site: Site) -> str | None:
    """Who else reads the old value."""
    for reader in readers(updated):
        if reader is not result and not is_write(reader):
            return f"the old value is also read by {reader.name}"
    for name, node in site.inputs.items():
        if name != site.match.pattern.updates and node is not None and origin(node) is updated:
            return f"{name} lies in {updated.name} itself"
    return None


def _kept(updated: fx.Node, result: fx.Node) -> str | None:
    """Who keeps the new value."""
    for reader in readers(result):
        if reader.op == "output":
            return "the new value is also returned"
        if is_write(reader) and updated not in written_by(reader):
            return f"the new value is also written by {reader.name}"
    return None


def _write_back(updated: fx.Node, result: fx.Node) -> Overwrite | str:
    writes = [reader for reader in readers(updated) if is_write(reader)]
    if not writes:
        return f"{updated.name} keeps its old value: nothing writes it"
    if len(writes) > 1:
        return f"{updated.name} is written {len(writes)} times"
    (write,) = writes
    is_plain = write.target.name() == "aten::copy_" and write.args[:2] == (updated, result)  # type: ignore[union-attr]
    if not is_plain or write.users:
        return f"{write.name} does not write the result, and nothing else, into {updated.name}"
    return Overwrite(write)
