"""What of a site stays in the graph when the site is fused, and whether that is cheap enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.schema import is_view
from glmfuse.matching.check import Site
from glmfuse.matching.cone import tensor_inputs
from glmfuse.matching.match import Mismatch, Stage

aten = torch.ops.aten

_CHEAP = frozenset(
    {aten._to_copy.default, aten._unsafe_view.default, aten.clone.default, aten.zeros_like.default,
     torch.ops.prims.convert_element_type.default}
)  # fmt: skip
"""Casts and fills: with an outside user they are computed twice rather than block a fusion."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """owned: nodes that are replaced or vanish. kept: cheap nodes that live on for outside users."""

    owned: frozenset[fx.Node]
    kept: frozenset[fx.Node]


def footprint(site: Site) -> Footprint | Mismatch:
    """Follow every outside user back into the site; views, casts and fills may stay, other values not."""
    outputs = {node for held in site.cone.outputs for node in held}
    kept: set[fx.Node] = set()
    stack = [node for node in site.cone.nodes if node not in outputs and _outside_user(node, site) is not None]
    while stack:
        node = stack.pop()
        if node in kept or node in outputs:
            continue
        if not is_cheap(node):
            return _escaped(site, node)
        kept.add(node)
        stack.extend(source for source in tensor_inputs(node) if source in site.cone.nodes)
    return Footprint(site.cone.nodes - kept, frozenset(kept))


def is_cheap(node: fx.Node) -> bool:
    """Whether a node only renames, casts or fills."""
    op = node.target
    return isinstance(op, OpOverload) and (is_view(op) or op in _CHEAP)


def compute_nodes(site: Site) -> int:
    """How many nodes of the site compute: what an engine without fusion would launch."""
    return sum(1 for node in site.cone.nodes if not is_cheap(node) and isinstance(node.target, OpOverload))


def _outside_user(node: fx.Node, site: Site) -> fx.Node | None:
    return next((user for user in node.users if user not in site.cone.nodes), None)


def _escaped(site: Site, node: fx.Node) -> Mismatch:
    user = _outside_user(node, site) or node
    return site.match.refused(
        Stage.ESCAPE, "escape", f"{node.name} used only inside the site", f"also used by {user.name}", node
    )
