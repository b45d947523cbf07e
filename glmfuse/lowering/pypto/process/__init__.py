"""pypto in a process of its own: its state is global, a failed compile poisons it, and it may hang."""

from glmfuse.lowering.pypto.process.messages import PASSED, PASSES, KernelRef, Mode, Outcome, Request, Simulation
from glmfuse.lowering.pypto.process.worker import run

__all__ = ["PASSED", "PASSES", "KernelRef", "Mode", "Outcome", "Request", "Simulation", "run"]
