from dse.analysis.report import explain

__all__ = ["explain"]
