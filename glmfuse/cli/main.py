"""`glmfuse COMMAND`: reads the arguments and calls the command's module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from glmfuse.errors import GlmfuseError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 1 with one line of what to do when it could not."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "demo":
            from glmfuse.cli.demo import demo

            return demo(engine=arguments.engine, dtype=arguments.dtype)
        from glmfuse.cli.explain import explain_config

        return explain_config(
            arguments.config, arguments.layers, arguments.phase, arguments.tokens, as_json=arguments.json
        )
    except Exception as error:
        cause = getattr(error, "inner_exception", error)  # Dynamo wraps what a backend raises
        if not isinstance(cause, GlmfuseError):
            raise
        print(f"glmfuse: {cause}", file=sys.stderr)
        return 1


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
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value
