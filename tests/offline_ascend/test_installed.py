"""What glmfuse says of the real torch_npu: over stand-ins for CANN, with 0, 1 and 2 fake devices, and without them.

No chip is here: that a device is found is the stand-ins' doing; that CANN is missed is the wheel's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

from glmfuse.ascend import installed
from glmfuse.ascend.libraries import missing
from glmfuse.ascend.versions import OPTIONS, RUN, Engines, engines_of

CANN = [f"lib{name}.so" for name in ("acl_op_compiler", "acl_tdt_channel", "ascendcl", "ge_runner", "graph", "hccl")]
LOAD = "from tests.offline_ascend.standin.load import load; load()"


def run(*code: str, stand_ins: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Lines of Python in a process of its own, with the stand-ins loaded first, or without any."""
    given = {**os.environ, **environment}
    if not stand_ins:
        given.pop("CANN_STAND_INS", None)
    lines = [LOAD, *code] if stand_ins else list(code)
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)


def test_a_fake_device_is_a_device() -> None:
    assert installed.unavailable() is None
    assert installed.device_count() == 1
    assert installed.soc_name() == "Ascend910B1"
    assert installed.torch_npu_version() == RUN


def test_the_table_has_the_options_that_this_build_has() -> None:
    from npugraph_ex import CompilerConfig

    assert {name for name in vars(CompilerConfig()) if name != "_fixed_attrs"} == OPTIONS
    found = engines_of(metadata.version("torch_npu"))
    assert isinstance(found, Engines)
    backends = {point.name for point in metadata.entry_points(group="torch_dynamo_backends")}
    assert found.registers_itself == ({"npu", "npugraph_ex"} <= backends)


@pytest.mark.parametrize(
    ("devices", "said"), [("0", "sees no NPU; look at `npu-smi info`"), ("1", "None"), ("2", "None")]
)
def test_devices_are_counted_and_none_is_no_crash(devices: str, said: str) -> None:
    code = "from glmfuse.ascend import installed; print(installed.device_count(), installed.unavailable())"
    done = run(code, stand_ins=True, STAND_IN_DEVICES=devices)
    assert done.returncode == 0, done.stderr
    assert f"{devices} " in done.stdout
    assert said in done.stdout


def test_asking_opens_no_device() -> None:
    code = "from glmfuse.ascend import installed; print(installed.unavailable(), installed.npu().is_initialized())"
    assert "None False" in run(code, stand_ins=True).stdout


def test_the_wheel_without_cann_breaks_torch_and_the_doctor_says_so() -> None:
    torch = run("import torch", stand_ins=False, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert "Failed to load the backend extension: torch_npu" in torch.stderr
    code = "from glmfuse.cli.main import main; raise SystemExit(main(['doctor']))"
    done = run(code, stand_ins=False, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert done.returncode == 1
    assert "CANN's libraries are not found (libacl_op_compiler.so and 5 more)" in done.stdout
    assert "usable: no; `import torch` fails here" in done.stdout
    assert run(code, stand_ins=False, TORCH_DEVICE_BACKEND_AUTOLOAD="0").returncode == 0


def test_the_libraries_that_are_missing_are_those_that_the_wheel_needs() -> None:
    code = "from glmfuse.ascend import installed, libraries; print(*libraries.missing(installed._library()))"
    assert run(code, stand_ins=False).stdout.split() == CANN
    library = installed._library()
    assert library is not None
    assert missing(library) == ()  # the stand-ins are loaded here


def test_a_model_of_transformers_compiles_without_cann() -> None:
    """Where torch is told to leave torch_npu alone; transformers is not, and would import it for itself."""
    bare = run(
        "import transformers",
        "transformers.AutoModelForCausalLM.from_config(transformers.Glm4MoeConfig())",
        stand_ins=False, TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )  # fmt: skip
    assert "libhccl.so: cannot open shared object file" in bare.stderr
    done = run(
        "import glmfuse, torch",
        "from glmfuse import huggingface",
        "model = huggingface.build(huggingface.make_config({**huggingface.TINY, 'num_hidden_layers': 2}))",
        "report, tokens = glmfuse.Report(), huggingface.random_tokens(model, 2, 7)",
        "with torch.no_grad():",
        "    compiled = torch.compile(model, backend='glmfuse', options={'report': report, 'engine': 'eager'})",
        "    assert torch.allclose(compiled(tokens).logits, model(tokens).logits, atol=1e-5)",
        "print(report.count('chosen')['norm_qkv_rope'])",
        stand_ins=False, TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )  # fmt: skip
    assert done.stdout.split()[-1:] == ["2"], done.stderr[-2000:]


def test_a_cann_that_is_gone_breaks_the_import_and_is_named_before() -> None:
    code = "from glmfuse.ascend import installed; print(installed.unavailable())"
    assert "names '/gone', which is no folder" in run(code, stand_ins=False, ASCEND_HOME_PATH="/gone").stdout
    assert "/gone does not exist" in run("pass", stand_ins=True, ASCEND_HOME_PATH="/gone").stderr


def test_the_doctor_finds_the_fake_device() -> None:
    done = run("from glmfuse.cli.main import main; main(['doctor'])", stand_ins=True)
    assert "  torch_npu     2.13.0\n" in done.stdout, done.stderr
    assert "  NPU           1 x Ascend910B1\n" in done.stdout
    assert "a model on npu gets\n  engine        npugraph_ex\n" in done.stdout
    assert done.stdout.endswith("usable: yes\n")
    assert "ASCEND_HOME_PATH is not set" in done.stdout
