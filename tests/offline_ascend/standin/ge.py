"""What torchair asks of GE's C++ while it converts, answered in Python. Nothing is compiled or run.

Each patch is one answer that CANN would give. A graph that converts here has passed torchair's converters, no more.
"""

from __future__ import annotations

from typing import Any

# GE's registry of operator prototypes: name -> ("SUCCESS", inputs, outputs, attributes), each a list of (name, kind).
PROTOTYPES: dict[str, tuple[str, list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]] = {}
UNKNOWN = ("ERROR", [], [], [])


class Engine:
    """torchair's C++ module `_torchair`, as far as conversion needs it."""

    def export(self, *args: Any, **kwargs: Any) -> None:
        """CANN writes the .air file; here the graph stays the protobuf that it was made from."""

    def get_registered_ir_def(self, name: str) -> tuple[str, Any, Any, Any]:
        """CANN knows the prototypes of its operators; here those in `PROTOTYPES`."""
        return PROTOTYPES.get(name, UNKNOWN)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"_torchair.{name} is CANN's; the stand-ins stop at the converted GE graph")


def stand_in() -> None:
    """Patch torchair's Python where it calls GE."""
    import torchair._ge_concrete_graph.compat_ir as compatibility
    import torchair._ge_concrete_graph.custom_op_pre_scan as custom_ops
    import torchair._ge_concrete_graph.fx2ge_converter as converter
    import torchair.core._backend as backend
    import torchair.ge.ge_custom as custom

    converter.initialize_graph_engine = lambda *args, **kwargs: None  # starts GE and opens a session
    backend._cached_device_id = 0  # asks GE for the device of its session
    compatibility.is_cann_compat = lambda *args, **kwargs: ""  # asks whether the installed CANN has an operator
    custom_ops._check_python_path_deps = lambda: True  # asks whether CANN ships its Python package `ge`
    converter._torchair = custom._torchair = Engine()
