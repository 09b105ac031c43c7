"""Checks: what the user says about outputs before they count, by name and revision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dse.contracts.revision import source_revision
from dse.errors import BudgetExhausted, ContractError, InfrastructureError, UserError

__all__ = ["Check", "check", "checks_by_name"]


@dataclass(frozen=True)
class Check:
    """A function ``(inputs, outputs) -> bool`` that says whether outputs are accepted. Made by ``@dse.check``."""

    name: str
    revision: str
    fn: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        return self.fn(inputs, outputs)

    async def accepts(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
        """The answer; a plain function is called in a thread.

        Raises:
            UserError: it raised, or answered neither True nor False.
            InfrastructureError, BudgetExhausted: as raised in the function: nobody's mistake.
        """
        import anyio.to_thread

        try:
            if inspect.iscoroutinefunction(self.fn):
                answer = await self.fn(inputs, outputs)
            else:
                answer = await anyio.to_thread.run_sync(self.fn, inputs, outputs, abandon_on_cancel=True)
        except (InfrastructureError, BudgetExhausted):
            raise
        except Exception as exc:
            raise UserError(f"The check {self.name!r} raised {type(exc).__name__}",
                            remedy="Correct the check; it has to answer for every output that fits the signature.") from exc  # fmt: skip
        if not isinstance(answer, bool):
            raise UserError(f"The check {self.name!r} answered neither True nor False", value=type(answer).__name__,
                            remedy="Return a bool.")  # fmt: skip
        return answer


def check(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, revision: str | None = None) -> Any:
    """Declare a check: ``@dse.check`` or ``@dse.check(revision="1")`` on ``(inputs, outputs) -> bool``.

    Both arguments are mappings of field names to typed values. A cascade names its check in its plan; the function is
    given to ``dse.Program`` or ``dse.load`` as ``checks=[...]``.

    Args:
        name: default the function's name.
        revision: change it when the meaning changes; default a hash of the function's own source.

    Raises:
        ContractError: no function of two positional arguments, or an empty name or revision.
    """
    if fn is None:
        return lambda function: check(function, name=name, revision=revision)
    if isinstance(fn, Check):
        return fn
    try:
        inspect.signature(fn).bind(None, None)
    except (TypeError, ValueError):
        raise ContractError("A check takes (inputs, outputs)", value=repr(fn),
                            remedy="Declare a function of two positional parameters.") from None  # fmt: skip
    shown = getattr(fn, "__name__", type(fn).__name__) if name is None else name
    made = source_revision(fn) if revision is None else revision
    for what, text in (("name", shown), ("revision", made)):
        if not isinstance(text, str) or not text:
            raise ContractError(f"A check's {what} is a text", value=repr(text), remedy=f'Write {what}="...".')
    return Check(shown, made, fn)


def checks_by_name(checks: Iterable[Any]) -> dict[str, Check]:
    """Given checks by name.

    Raises:
        ContractError: something else than a check, or two of one name.
    """
    found: dict[str, Check] = {}
    for one in checks:
        if not isinstance(one, Check):
            raise ContractError("checks= takes functions declared with @dse.check", value=repr(one), remedy="Decorate it.")
        if one.name in found:
            raise ContractError("Two checks have one name", value=one.name, remedy="Give one of them name=.")
        found[one.name] = one
    return found
