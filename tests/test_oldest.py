"""The oldest transformers whose GLM compiles whole, live: `make test` runs this file with that version in place."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from glmfuse import Report
from glmfuse.lowering.tolerance import allowed
from glmfuse.lowering.verify import difference
from tests.recorded.record import CASES, called
from tests.support.expected import VERSIONS, check_counts
from tests.support.graphs import capture

OLDEST = "5.0.0"
pytestmark = pytest.mark.skipif(transformers.__version__ != OLDEST, reason=f"is for transformers {OLDEST}")


@pytest.mark.parametrize("case", [case for version, case in VERSIONS if version == OLDEST])
def test_what_was_recorded_is_what_it_does(case: str) -> None:
    model, arguments = called(CASES[case])
    (captured,) = capture(model, **arguments)
    check_counts(captured, case, VERSIONS[OLDEST, case])


def test_a_decode_step_through_the_backend() -> None:
    model, arguments = called(CASES["decode_static"])
    cache = copy.deepcopy(arguments["past_key_values"])
    report = Report()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="glmfuse", options={"engine": "eager", "report": report})
    expected = model(**arguments).logits
    found = compiled(arguments["input_ids"], past_key_values=cache).logits
    assert difference(found, expected)[1] <= allowed(found.dtype)
    assert report.count("chosen")["moe"] == 1
    for ours, theirs in zip(cache.layers, arguments["past_key_values"].layers, strict=True):
        assert difference(ours.keys, theirs.keys)[1] <= allowed(found.dtype)
