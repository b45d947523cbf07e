"""How builds of torch_npu differ in what glmfuse calls: one table, read from every wheel from 2.9.0 to 2.14.0.

The differences go with the build, not with torch: 2.9.0.post9 has what 2.12.0 lacks. Only 2.13.0 has been run
with glmfuse, and that without an NPU; the others' Python sources were read, no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

RUN: Final = "2.13.0"
"""The one build whose engines glmfuse's tests call."""

_NEWEST_OPTION: Final = "unsafe_skip_npugraph_capture_validation"

OPTIONS: Final = frozenset(
    {
        "_vllm_aclnn_static_kernel_sym_index",
        "_vllm_aclnn_static_kernel_sym_range",
        "capture_error_mode",
        "capture_limit",
        "clone_input",
        "clone_output",
        "data_dump_dir",
        "data_dump_stage",
        "deadlock_check",
        "disable_static_kernel_compile_cache",
        "dump_tensor_data",
        "force_eager",
        "force_recapture",
        "frozen_parameter",
        "inplace_pass",
        "input_inplace_pass",
        "mode",
        "pattern_fusion_pass",
        "post_grad_custom_post_pass",
        "post_grad_custom_pre_pass",
        "record_statistics_debug_info",
        "remove_cat_ops",
        "remove_noop_ops",
        "reuse_graph_pool_in_same_fx",
        "static_kernel_compile",
        "super_kernel_debug_options",
        "super_kernel_optimize",
        "super_kernel_optimize_options",
        _NEWEST_OPTION,
        "use_graph_pool",
    }
)
"""The fields of npugraph_ex's CompilerConfig in torch_npu 2.13.0: the options that it takes."""


@dataclass(frozen=True, slots=True)
class Engines:
    """What the graph engines of a build are.

    npugraph_ex: None, or why glmfuse cannot call it. options: the names that npugraph_ex takes.
    registers_itself: Dynamo finds its backends by entry points; without, `import torch_npu` comes first.
    makes_converters: torchair makes a GE converter for a Python op that has a kernel for PrivateUse1.
    """

    npugraph_ex: str | None = None
    options: frozenset[str] = OPTIONS
    registers_itself: bool = True
    makes_converters: bool = True


_FULL = Engines()
_FLAT = Engines(options=OPTIONS - {_NEWEST_OPTION}, registers_itself=False, makes_converters=False)
_NESTED = replace(
    _FLAT,
    npugraph_ex="its npugraph_ex takes other options, in groups; 2.9.0.post6, 2.10.0.post4 and 2.11.0 have today's",
    options=frozenset(),
)
_NAME = replace(_NESTED, npugraph_ex="its npugraph_ex is a name without a package; install 2.9.0.post6 or later")

Build = tuple[int, int]
"""Patch and post release of one minor version."""

_SINCE: Final[Mapping[tuple[int, int], tuple[tuple[Build, Engines], ...]]] = MappingProxyType(
    {
        (2, 9): (((0, 0), _NAME), ((0, 2), _NESTED), ((0, 6), _FLAT), ((0, 9), _FULL), ((1, 0), _NESTED)),
        (2, 10): (((0, 0), _NESTED), ((0, 4), _FLAT), ((0, 7), _FULL)),
        (2, 11): (((0, 0), _FLAT), ((0, 3), _FULL)),
        (2, 12): (((0, 0), _FLAT), ((0, 3), _FULL)),
        (2, 13): (((0, 0), _FULL),),
        (2, 14): (((0, 0), _FULL),),
    }
)
"""From which build on; torchair, with `get_compiler`, is in all of them."""


def engines_of(build: str) -> Engines | str:
    """What a build such as "2.11.0.post3" has, or why glmfuse does not know."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.post(\d+))?", build)
    if found is None:
        return f"torch_npu's version {build!r} cannot be read; install a released build, such as {RUN}"
    major, minor, patch, post = (int(part or 0) for part in found.groups())
    if (major, minor) < min(_SINCE):
        return f"torch_npu {build} is older than any that glmfuse knows; install 2.11.0 or later"
    if (major, minor) > max(_SINCE):
        return f"torch_npu {build} is newer than any that glmfuse knows; install one up to 2.14"
    return [engines for since, engines in _SINCE[major, minor] if since <= (patch, post)][-1]
