"""JSON for people: one line for each entry of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def entry_a_line(data: Mapping[str, Any]) -> str:
    """The JSON of a mapping whose lists and mappings have a line for each entry."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_spread(value)}" for name, value in data.items()) + "\n}"


def _spread(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{\n " + ",\n ".join(f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n}"
    if isinstance(value, list):
        return "[\n " + ",\n ".join(json.dumps(item) for item in value) + "\n]"
    return json.dumps(value)
