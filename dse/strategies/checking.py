"""How a script of mode ``code`` or ``script`` is checked before it may run: lint, then the gate check against stubs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dse.contracts.signature import SignatureSpec
from dse.contracts.stubs import input_declarations, stubs_for
from dse.contracts.tool import ToolContract
from dse.runtime import sandbox
from dse.runtime.guest import Checked

__all__ = ["IMPORTS", "CheckerTexts", "checker_texts", "imports_in", "known_names", "lint_and_check"]

_IMPORTED = {"asyncio": "import asyncio", "datetime": "import datetime", "Decimal": "from decimal import Decimal"}
IMPORTS = "\n".join(_IMPORTED.values())  # there for every script, as the stubs suggest
_HEAD = "from typing import Any, Literal, NotRequired, TypedDict"


class CheckerTexts(NamedTuple):
    """What the checker is told: stubs of the tools, and declarations of the inputs as variables."""

    stubs: str
    declarations: str


def checker_texts(spec: SignatureSpec, contracts: Iterable[ToolContract], *, abstain: bool = False) -> CheckerTexts:
    """For the scripts of a signature with these tools.

    Args:
        abstain: there is ``abstain(reason)`` besides ``submit(...)``.

    Raises:
        ContractError: no stub or declaration can express a schema.
    """
    classes, declarations = input_declarations(spec.input_schema)
    # Models sometimes await `submit`; harmless, because a valid answer ends the run inside the call. What comes after a
    # call that ends the task is checked like the rest.
    stubs = stubs_for(contracts, outputs=spec.output_schema, checking=True, abstain=abstain)
    return CheckerTexts("\n".join([_HEAD, IMPORTS, classes, stubs.replace(") -> NoReturn:", ") -> Any:")]), declarations)


def known_names(spec: SignatureSpec) -> frozenset[str]:
    """Variables and modules that are there when a script begins."""
    return frozenset({*spec.inputs, *_IMPORTED})


def imports_in(*pieces: str) -> list[str]:
    """The standard imports that code names. The others would be resolved anew in every check, for nothing."""
    return [line for name, line in _IMPORTED.items() if any(name in piece for piece in pieces)]


async def lint_and_check(spec: SignatureSpec, code: str, contracts: Mapping[str, ToolContract],
                         texts: Callable[[], CheckerTexts], *, ends: Iterable[str] = ()) -> Checked:  # fmt: skip
    """Check a script that begins with nothing before it. Nothing runs.

    Args:
        contracts: of the tools that it may call, by name.
        texts: gives the texts of these tools, where the lint finds nothing.
        ends: functions besides ``submit`` that end it.

    Raises:
        ContractError: the checker cannot check calls of these tools.
        SandboxUnavailable: no worker could be had.
    """
    lint = sandbox.lint(code, tool_names={*contracts, *ends}, output_names=spec.outputs, known_names=known_names(spec))
    if lint.errors:
        return Checked(lint, lint.errors)
    (stubs, declarations), checker = texts(), sandbox.checker()
    await checker.validate_stubs(stubs, declarations)
    found = await checker.check(stubs=stubs, declarations=declarations, earlier=imports_in(code), code=code)
    return Checked(lint, tuple(remark for remark in found if remark.severity == "error"))
