"""What a kernel saves, by launches and by bytes: nothing here has been timed on a chip."""

from __future__ import annotations

from glmfuse.lowering.pypto.chip import ASCEND_910B
from glmfuse.matching.select import Gain, Request

_BYTES_PER_US = ASCEND_910B.bandwidth / 1e6


def gain_of(request: Request, launches: int = 1, moved: float = 0, moved_apart: float = 0) -> Gain:
    """So many launches that move so many bytes, against the site's operators and what they move.

    Casts and copies are launches on neither side: the site's are not counted either. Bytes that both sides move
    may be left out of both.
    """
    fused = launches * request.launch_us + moved / _BYTES_PER_US
    apart = request.compute_nodes * request.launch_us + moved_apart / _BYTES_PER_US
    counted = f"{launches} launches for {request.compute_nodes} operators"
    sizes = f", {moved:.3g} bytes for {moved_apart:.3g} at 1.6 TB/s" if moved or moved_apart else ""
    return Gain(fused, apart, counted + sizes, by_launches=request.launch_us)
