"""Operators of other front ends, read as spellings of patterns; one file for each library that defines them.

A spelling is a function of a pattern's arguments, proven at the site like any other. So blocks match over these
operators as over plain aten, and what no kernel takes is left as the very call that it was.
"""

from glmfuse.dialects.dialect import DIALECTS, load

__all__ = ["DIALECTS", "load"]
