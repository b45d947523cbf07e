"""The table of torch_npu's builds: what it answers, and that it refuses what it does not know."""

from __future__ import annotations

import pytest

from glmfuse.ascend.versions import OPTIONS, RUN, Engines, engines_of

NEWEST = "unsafe_skip_npugraph_capture_validation"


def known(build: str) -> Engines:
    found = engines_of(build)
    assert isinstance(found, Engines), found
    return found


@pytest.mark.parametrize(
    "build", ["2.9.0.post9", "2.10.0.post7", "2.11.0.post3", "2.12.0.post3", "2.13.0", "2.13.0.post1", "2.14.0"]
)
def test_builds_with_all_options(build: str) -> None:
    found = known(build)
    assert found.npugraph_ex is None
    assert len(found.options) == 30
    assert found.registers_itself
    assert found.makes_converters


@pytest.mark.parametrize("build", ["2.9.0.post8", "2.10.0.post4", "2.11.0", "2.11.0.post2", "2.12.0", "2.12.0.post2"])
def test_builds_with_one_option_less(build: str) -> None:
    found = known(build)
    assert found.npugraph_ex is None
    assert OPTIONS - found.options == {NEWEST}
    assert {NEWEST, "force_eager"} - found.options == {NEWEST}
    assert not found.registers_itself


@pytest.mark.parametrize("build", ["2.9.0.post2", "2.9.1", "2.10.0", "2.10.0.post2"])
def test_builds_with_options_in_groups(build: str) -> None:
    assert "in groups" in str(known(build).npugraph_ex)


def test_a_name_without_a_package() -> None:
    assert "without a package" in str(known("2.9.0").npugraph_ex)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("2.8.0.post5", "older than any that glmfuse knows; install"),
        ("2.15.0", "newer than any that glmfuse knows; install"),
        ("3.0.0", "newer than any"),
        ("unknown", "cannot be read"),
    ],
)
def test_other_builds_are_refused(build: str, reason: str) -> None:
    assert reason in str(engines_of(build))
    assert build in str(engines_of(build))


def test_the_build_that_runs_is_known_whole() -> None:
    assert {"pattern_fusion_pass", "no_such_pass"} - known(RUN).options == {"no_such_pass"}
    assert known(f"{RUN}+gitc798c65") == known(RUN)
