"""What a `norm_qkv_rope` kernel is built for; no pypto here, both sides of the worker load it."""

from __future__ import annotations

from dataclasses import dataclass

from glmfuse.lowering.pypto.tiling import CubeTile


@dataclass(frozen=True, slots=True)
class Front:
    """What the kernel is built for.

    block: tokens of a round. rows, width: vector tile over hidden. head_rows: tokens of a vector tile over
    heads. bias_rows: of one over all columns. cube: tile of the projections, over the columns of all three.
    merged: one matrix has all rows.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    eps: float
    has_residual: bool
    has_bias: bool
    has_qk_norm: bool
    merged: bool
    block: int
    rows: int
    width: int
    head_rows: int
    bias_rows: int
    cube: CubeTile
    dtype: str

    @property
    def all_heads(self) -> int:
        """Heads of queries, keys and values."""
        return self.heads + 2 * self.kv_heads

    @property
    def layers(self) -> int:
        """What is summed into a projection: the products of slices of hidden, and the bias."""
        return self.cube.slices + self.has_bias


@dataclass(frozen=True, slots=True)
class QuantFront:
    """What a quantised `norm_qkv_rope` kernel is built for.

    front: its `cube` is a tile of codes, without slices, and `has_bias` tells of what is added to a projection: int32
    before it is scaled where scales are static, else floats after it. codes: "DT_INT8" or "DT_FP8E4M3". channels: of
    a static scale, 1 or hidden; 0 where each token has its own. factor_dtype, bias_dtype: of such a scale, and of what
    is added. held: whether weights lie [out, in].
    """

    front: Front
    codes: str
    channels: int
    factor_dtype: str
    bias_dtype: str
    held: bool

    @property
    def is_static(self) -> bool:
        """Whether the scale of the rows is known before."""
        return self.channels > 0
