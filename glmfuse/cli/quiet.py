"""A newcomer's screen: progress where it takes long, and no warnings about other people's code."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_NOISY = ("torch", "transformers", "torchao")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of torch and transformers off the screen; errors still show."""
    import torch  # noqa: F401  it sets the levels of its loggers when it is imported

    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Steps:
    """A progress bar over named steps, on stderr; nothing where all is done within a second."""

    def __init__(self, total: int) -> None:
        self._bar = _bar(total)

    def __call__(self, name: str) -> None:
        """Start the next step."""
        if self._bar is not None:
            self._bar.set_description_str(name, refresh=False)
            self._bar.update(1)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    layout = "{desc}: step {n_fmt} of {total_fmt} |{bar:20}| {elapsed}"
    return tqdm(total=total, delay=1, leave=False, file=sys.stderr, bar_format=layout)
