"""Two spellings of one value become one term; the captured graph itself is never touched."""

from glmfuse.canonicalize.canonical import Canonical, canonicalize, typed
from glmfuse.canonicalize.term import AFTER, GETITEM, INPUT, Arg, Op, Term, describe_op, terms_in

__all__ = [
    "AFTER",
    "GETITEM",
    "INPUT",
    "Arg",
    "Canonical",
    "Op",
    "Term",
    "canonicalize",
    "describe_op",
    "terms_in",
    "typed",
]
