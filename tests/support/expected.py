"""Sites found in members of the family and versions of transformers, held by tests and shown in the README.

`python -m tests.support.expected` prints the README's two tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from tests.support.graphs import Captured, outputs_and_writes, run_stages, same_bits

COLUMNS = (
    "norm_qkv_rope", "attention", "moe", "gate_topk", "grouped_mlp", "swiglu_mlp", "linear_add_rms_norm",
    "add_rms_norm", "rms_norm",
)  # fmt: skip
BLOCKS = ("norm_qkv_rope", "moe")
"""Those that are fused wherever they are found."""

CACHES = 4
"""Updates of keys and values in the two layers, wherever the cache is static."""

Counts = tuple[int, int, int, int, int, int, int, int, int]
Key = tuple[str, str]

MIXED: Counts = (2, 2, 1, 1, 1, 2, 3, 4, 9)
"""Two layers of GLM-4.5, one dense and one with experts; what a block takes is counted too."""
NO_HEAD_NORMS: Counts = (2, 2, 1, 1, 1, 2, 3, 4, 5)
LATENT: Counts = (0, 2, 1, 1, 1, 2, 3, 4, 9)
UNLIKE_WIDTHS: Counts = (0, 0, 1, 1, 1, 2, 3, 4, 9)
DENSE: Counts = (2, 2, 0, 0, 0, 2, 4, 4, 9)
FOUR_NORMS: Counts = (2, 2, 0, 0, 0, 2, 0, 4, 9)
"""A norm between each projection and its sum."""
DENSE_NO_HEAD_NORMS: Counts = (2, 2, 0, 0, 0, 2, 4, 4, 5)
OTHER_ROUTER: Counts = (2, 2, 0, 0, 1, 2, 3, 4, 9)
ROUTER: Counts = (0, 0, 0, 1, 0, 0, 0, 0, 0)
NOTHING: Counts = (0, 0, 0, 0, 0, 0, 0, 0, 0)

FAMILY: Mapping[Key, Counts] = {
    (name, phase): counts
    for name, counts in {
        "glm4_moe": MIXED,
        "glm4_moe (Air)": NO_HEAD_NORMS,
        "glm4v_moe_text": NO_HEAD_NORMS,
        "glm4_moe_lite": LATENT,
        "glm_moe_dsa": LATENT,
        "deepseek_v3": UNLIKE_WIDTHS,
        "glm4": FOUR_NORMS,
        "glm": DENSE_NO_HEAD_NORMS,
    }.items()
    for phase in ("prefill", "decode")
}

_WHOLE = ("prefill", "decode_static", "decode_dynamic", "decode_batched")
VERSIONS: Mapping[Key, Counts] = {
    ("4.57.6", "prefill_dense"): DENSE,
    ("4.57.6", "decode_static_dense"): DENSE,
    ("4.57.6", "decode_dynamic_dense"): DENSE,
    ("4.57.6", "prefill_router"): ROUTER,
    ("4.57.6", "prefill_router_groups"): NOTHING,
    **{("5.0.0", case): MIXED for case in _WHOLE},
    ("5.0.0", "decode_groups"): OTHER_ROUTER,
    **{("5.5.4", case): MIXED for case in (*_WHOLE, "decode_fp32")},
    ("5.5.4", "decode_groups"): OTHER_ROUTER,
    **{("5.10.4", case): MIXED for case in (*_WHOLE, "decode_fp32", "decode_groups")},
    **{("5.16.1", case): MIXED for case in (*_WHOLE, "decode_fp32", "decode_groups")},
}

_LATENT = "latent attention: q, k and v come through low ranks, and its rotary takes neighbours and leaves halves"
_FILL = "groups left out score 0, not -inf: with a negative bias, they can win"
WHY: Mapping[tuple[str, Counts], str] = {
    ("glm4_moe_lite", LATENT): _LATENT,
    ("glm_moe_dsa", LATENT): f"{_LATENT}; the indexer, whose mask `attention` takes, is no pattern",
    ("deepseek_v3", UNLIKE_WIDTHS): f"{_LATENT}; torch decomposes attention with keys wider than values",
    ("glm4", FOUR_NORMS): "each projection is normed before it is summed",
    ("4.57.6", DENSE): "one model without experts: the loop over experts breaks the graph",
    ("4.57.6", ROUTER): "of a model with experts, the router, between two breaks",
    ("4.57.6", NOTHING): _FILL,
    ("5.0.0", OTHER_ROUTER): _FILL,
    ("5.5.4", OTHER_ROUTER): _FILL,
}
"""Of every row with less than all that GLM-4.5 has, and layers for it: what is missing."""


def check_counts(captured: Captured, case: str, expected: Counts) -> None:
    """So many sites, each block fused, and every output and written input as it was."""
    module = captured.module()
    report = run_stages(module)
    found, chosen = report.count(), report.count("chosen")
    assert {name: found[name] for name in COLUMNS} == dict(zip(COLUMNS, expected, strict=True))
    assert found["cache_update"] == (CACHES if "decode" in case and "dynamic" not in case else 0)
    assert {name: chosen[name] for name in BLOCKS} == {name: found[name] for name in BLOCKS}
    before = outputs_and_writes(captured.module(), captured.arguments())
    assert not any(value.isnan().any() for value in before if isinstance(value, torch.Tensor))
    assert same_bits(outputs_and_writes(module, captured.arguments()), before)


def table(first: str, counts: Mapping[Key, Counts]) -> str:
    """A Markdown table, with a row for all cases of one name that have the same counts."""
    header = (first, "case", *(f"`{column}`" for column in COLUMNS), "not matched")
    rows = [header, ("---",) * len(header), *_rows(counts)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(counts: Mapping[Key, Counts]) -> Iterator[tuple[str, ...]]:
    merged: dict[tuple[str, Counts], list[str]] = {}
    for (name, case), found in counts.items():
        merged.setdefault((name, found), []).append(f"`{case}`")
    for (name, found), cases in merged.items():
        yield name, ", ".join(cases), *map(str, found), WHY.get((name, found), "")


if __name__ == "__main__":
    print(table("model", FAMILY), table("transformers", VERSIONS), sep="\n\n")
