"""`glmfuse quantize`: a quantised checkpoint of a config, with random or given weights."""

from __future__ import annotations

import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

from glmfuse.cli.quiet import Steps, quiet

_GIB = 2**30


def quantize_config(arguments: Namespace) -> int:
    """Write the checkpoint and say what it holds."""
    with quiet():  # transformers brings in torchao where it is installed
        from glmfuse.huggingface import read_config
        from glmfuse.quantization.quantize import Job, form, quantize
        from glmfuse.quantization.schemes import scheme

    chosen = scheme(arguments.scheme)
    job = Job(
        config=read_config(arguments.config),
        scheme=chosen,
        form=form(chosen, arguments.format, arguments.w4a8_version, arguments.group_size),
        out=Path(arguments.out),
        weights=None if arguments.weights is None else Path(arguments.weights),
        seed=arguments.seed,
        mtp=arguments.mtp,
    )
    start = time.perf_counter()
    with quiet(), _Progress() as step:
        written = quantize(job, step)
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(written.layers.items()))
    print(f"{job.out}: {chosen.name} as {job.form.format}, {written.mtp_layers} MTP layers; linear layers: {layers}")
    seconds = time.perf_counter() - start
    print(f"{written.bytes / _GIB:.3g} GiB in {seconds:.1f} s, weights {_origin(job.weights, job.seed)}")
    return 0


def add_arguments(parser: ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.json", help="a config.json of a glm4_moe")
    parser.add_argument(
        "--scheme", required=True, help="w8a8, w8a8_dynamic, w4a8_dynamic or fp8_per_token: what each layer becomes"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the checkpoint")
    parser.add_argument("--weights", metavar="DIR", help="a floating-point checkpoint (default: random weights)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and calibration's tokens")
    parser.add_argument("--group-size", type=int, metavar="N", help="inputs that share a scale of W4A8 (default: all)")
    parser.add_argument("--w4a8-version", choices=("1.0.0", "0"), help="two int4 in a byte (default), or one")
    parser.add_argument("--format", choices=("modelslim", "compressed-tensors"), help="default: the scheme's usual one")
    parser.add_argument(
        "--mtp",
        action=BooleanOptionalAction,
        help="with MTP layers (default: where weights or config have them)",
    )


def _origin(weights: Path | None, seed: int) -> str:
    return f"drawn by seed {seed}" if weights is None else f"of {weights}"


class _Progress:
    """A bar that learns how many steps there are with the first."""

    def __init__(self) -> None:
        self._steps: Steps | None = None

    def __call__(self, name: str, total: int) -> None:
        self._steps = self._steps or Steps(total)
        self._steps(name)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps is not None:
            self._steps.__exit__()
