"""The sandbox: guest code runs in worker processes, is rewritten and linted on the host, and type-checked.

The only room that knows the interpreter. Importing this package does not import it; using a
:class:`Sandbox` or :class:`Checker` does.
"""

from __future__ import annotations

from dse.runtime.sandbox.checker import PRELUDE, Checker
from dse.runtime.sandbox.interpreter import Sandbox, Session
from dse.runtime.sandbox.lint import LintResult, extract_code, lint
from dse.runtime.sandbox.records import (
    Diagnostic,
    ExternalCall,
    Failed,
    Finished,
    GuestError,
    Raise,
    Result,
    SandboxLimits,
    Turn,
    Value,
    Waiting,
)

__all__ = [
    "PRELUDE", "Checker", "Diagnostic", "ExternalCall", "Failed", "Finished", "GuestError", "LintResult", "Raise",
    "Result", "Sandbox", "SandboxLimits", "Session", "Turn", "Value", "Waiting", "extract_code", "lint",
]  # fmt: skip
