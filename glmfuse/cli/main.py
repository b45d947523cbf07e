"""`glmfuse COMMAND`: reads the arguments and calls the command's module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from glmfuse.ascend.aside import set_aside
from glmfuse.cli import quantize
from glmfuse.errors import GlmfuseError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 1 with one line of what to do when it could not."""
    arguments = _parser().parse_args(argv)
    aside = set_aside()
    if arguments.command == "doctor":
        from glmfuse.cli.doctor import doctor

        return doctor(aside, as_json=arguments.json)
    if aside is not None:
        print(f"glmfuse: going on without torch_npu: {aside.reason}", file=sys.stderr)
    try:
        return _run(arguments)
    except Exception as error:
        cause = getattr(error, "inner_exception", error)  # Dynamo wraps what a backend raises
        if not isinstance(cause, GlmfuseError):
            raise
        print(f"glmfuse: {cause}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "demo":
        from glmfuse.cli.demo import demo

        return demo(engine=arguments.engine, dtype=arguments.dtype)
    if arguments.command == "kernels":
        return _kernels(arguments)
    if arguments.command == "quantize":
        return quantize.quantize_config(arguments)
    from glmfuse.cli.explain import explain_config

    return explain_config(arguments.config, arguments.layers, arguments.phase, arguments.tokens, as_json=arguments.json)


def _kernels(arguments: argparse.Namespace) -> int:
    from glmfuse.cli import kernels

    if arguments.action == "list":
        return kernels.list_kernels()
    points = kernels.points(arguments.name, arguments.shape, arguments.tokens)
    if arguments.action == "check":
        return kernels.check_kernels(points, passes=arguments.passes, as_json=arguments.json)
    return kernels.time_kernels(points, as_json=arguments.json, trace=arguments.trace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="glmfuse", description="Whole-network fusion of GLM-4.5 under torch.compile.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="compile a tiny GLM-4.5, check it against eager, show what was fused")
    demo.add_argument("--engine", help="who compiles after fusion (default: the best that is usable here)")
    demo.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    explain = commands.add_parser("explain", help="show what would be fused in the model of a Hugging Face config")
    explain.add_argument("--config", required=True, metavar="FILE.json", help="a config.json; no weights are needed")
    explain.add_argument("--layers", type=_positive, metavar="N", help="trace only the first N layers")
    explain.add_argument("--phase", default="decode", choices=("decode", "prefill"), help="with a StaticCache")
    explain.add_argument("--tokens", type=_positive, default=128, metavar="N", help="length of the prefill")
    explain.add_argument("--json", action="store_true", help="print the report's data form")
    doctor = commands.add_parser("doctor", help="what is installed, what will be used, what to install for the rest")
    doctor.add_argument("--json", action="store_true", help="print the data form")
    _add_kernels(commands.add_parser("kernels", help="PyPTO kernels: list, check and time them without an NPU"))
    quantize.add_arguments(commands.add_parser("quantize", help="write a quantised checkpoint of a config.json"))
    return parser


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the patterns that have a kernel")
    check = actions.add_parser("check", help="compile and interpret kernels against their pattern functions")
    timing = actions.add_parser("time", help="kernels in PyPTO's cost model")
    for action in (check, timing):
        action.add_argument("name", nargs="?", help="one kernel (default: all)")
        action.add_argument(
            "--shape", type=_words, default=["glm-4.5/tp8"], help="glm-4.5/tp8, glm-4.5-air/tp16, ..., tiny; or several"
        )
        action.add_argument("--tokens", type=_token_counts, default=[1, 8, 32], metavar="1,8,32")
        action.add_argument("--json", action="store_true", help="print the data form")
    check.add_argument("--passes", action="store_true", help="interpret after each of PyPTO's passes, too; slow")
    timing.add_argument("--trace", metavar="FILE", help="write the tasks of the last kernel for Perfetto")


def _words(text: str) -> list[str]:
    return text.split(",")


def _token_counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value
