"""The report in a folder: text, JSON, GraphML and the graphs before and after, one set for each graph."""

from __future__ import annotations

import json
from pathlib import Path

from glmfuse.errors import OptionError
from glmfuse.report.graphml import write_graphml
from glmfuse.report.json import graph_to_json
from glmfuse.report.report import SCHEMA_VERSION, GraphReport
from glmfuse.report.text import render_graph


def write_graph(graph: GraphReport, folder: str) -> Path:
    """Write the next free set of files `graph-N.*`; nothing that lies there is overwritten."""
    stem = _next_stem(Path(folder))
    stem.with_suffix(".txt").write_text(render_graph(graph) + "\n")
    data = {"schema_version": SCHEMA_VERSION, **graph_to_json(graph)}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    write_graphml(graph, stem.with_suffix(".graphml"))
    for form in ("captured", "fused"):
        text = "\n\n".join(f"# {body.name}\n{getattr(body, form)}" for body in graph.bodies)
        stem.with_suffix(f".{form}.txt").write_text(text + "\n")
    return stem


def _next_stem(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            stem = folder / f"graph-{number}"
            try:
                stem.with_suffix(".txt").touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return stem
    except OSError as error:
        raise OptionError(f"option 'report': cannot write to folder {str(folder)!r}: {error}") from error
