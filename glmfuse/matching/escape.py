"""What of a site stays in the graph when the site is fused, and whether that is cheap enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch._ops import OpOverload

from glmfuse.canonicalize.schema import is_view
from glmfuse.matching.cone import Cone, tensor_inputs
from glmfuse.matching.size_reads import needs_no_tensor

aten = torch.ops.aten

_CHEAP = frozenset(
    {
        aten._to_copy.default,
        aten._unsafe_view.default,
        aten.clone.default,
        aten.zeros_like.default,
        torch.ops.prims.convert_element_type.default,
    }
)
"""Casts and fills: with an outside user they are computed twice rather than block a fusion."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """owned: nodes that are replaced or vanish. kept: cheap nodes that live on for outside users."""

    owned: frozenset[fx.Node]
    kept: frozenset[fx.Node]


@dataclass(frozen=True, slots=True)
class Escape:
    """An inner value that is too dear to compute twice, and who reads it outside."""

    node: fx.Node
    user: fx.Node


def footprint(cone: Cone) -> Footprint | Escape:
    """Follow every outside user back into the site; views, casts and fills may stay, other values not."""
    outputs = {node for held in cone.outputs for node in held}
    kept: set[fx.Node] = set()
    users = ((node, user) for node in cone.nodes - outputs for user in node.users if user not in cone.nodes)
    stack = [(node, user) for node, user in users if not needs_no_tensor(user)]
    while stack:
        node, user = stack.pop()
        if node in kept or node in outputs:
            continue
        if not is_cheap(node):
            return Escape(node, user)
        kept.add(node)
        stack.extend((source, node) for source in tensor_inputs(node) if source in cone.nodes)
    return Footprint(cone.nodes - kept, frozenset(kept))


def is_cheap(node: fx.Node) -> bool:
    """Whether a node only renames, casts or fills."""
    op = node.target
    return isinstance(op, OpOverload) and (is_view(op) or op in _CHEAP)


def computes(node: fx.Node) -> bool:
    """Whether an engine without fusion would launch it, casts and fills aside."""
    return isinstance(node.target, OpOverload) and not is_cheap(node)


def works(node: fx.Node) -> bool:
    """Whether it reads or writes memory at all: casts, copies and fills with the rest."""
    return isinstance(node.target, OpOverload) and not is_view(node.target)
