"""What was fused, what was not, and why: data first, then its renderings."""

from glmfuse.report.report import GraphReport, Report, Row

__all__ = ["GraphReport", "Report", "Row"]
