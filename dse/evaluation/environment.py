"""Environments: a fresh, isolated world of tool implementations for one rollout."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.contracts.tool import source_revision
from dse.errors import DseError, UserError

if TYPE_CHECKING:
    from dse.contracts.toolbox import Toolbox

__all__ = ["Environment", "World", "environment"]


@dataclass(frozen=True)
class World:
    """What one rollout runs against.

    Attributes:
        deps: handed to implementations as ``ctx.deps``.
        tools: implementations that replace the toolbox's, by name.
        state: called once after the run; its result (plain JSON data) is the end state that the metric sees.
        approve: decides about calls that need approval, ``callable(request) -> bool``; default: yes, because
            nothing outside the world can be reached.
        middleware: wraps the execution of every tool, inside what the program itself wraps it in.
    """

    deps: Any = None
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    state: Callable[[], Any] | None = None
    approve: Callable[[Any], Any] | None = None
    middleware: Sequence[Callable[..., Any]] = ()

    def bound(self, toolbox: Toolbox) -> Toolbox | None:
        """The tools of a run in this world; None where they are the toolbox's own."""
        return toolbox.merged(self.tools) if self.tools else None


class Environment:
    """A factory of worlds: a function, or a generator that cleans up after its ``yield``, sync or async.

    ``note`` says what evidence from this environment must be read with; None where there is nothing to say.
    """

    note: str | None = None

    @staticmethod
    def recorded(cassette: str | Path, **options: Any) -> Environment:
        """An environment whose tool calls are answered from a recording; see `dse.evaluation.recorded.recorded`."""
        from dse.evaluation.recorded import recorded

        return recorded(cassette, **options)

    def __init__(self, factory: Callable[[Any], Any], *, name: str, revision: str) -> None:
        self.factory = factory
        self.name = name
        self.revision = revision
        self.__doc__ = factory.__doc__

    def __repr__(self) -> str:
        return f"<dse.Environment {self.name} {self.revision}>"

    def __call__(self, example: Any) -> Any:
        return self.factory(example)

    @contextlib.asynccontextmanager
    async def enter(self, example: Any) -> AsyncIterator[World]:
        """A fresh world for `example`; leaves it on exit, also when the run failed.

        A failure of what runs in the world is raised even if the factory swallows it.

        Raises:
            UserError: the factory raised, before its ``yield`` or after, or gave something else than a World.
        """
        failure: BaseException | None = None
        done = "made no world"
        try:
            async with contextlib.AsyncExitStack() as stack:
                world = self._checked(await self._make(stack, example))
                done = "could not clean up its world"
                try:
                    yield world
                except BaseException as exc:
                    failure = exc
                    raise
        except DseError:
            raise
        except Exception as exc:
            if exc is failure:
                raise
            row = getattr(example, "id", None)
            raise UserError(f"Environment {self.name!r} {done} for row {row!r}: {type(exc).__name__}",
                            value=str(exc), remedy="Correct the environment or the row.") from exc  # fmt: skip
        if failure is not None:
            raise failure

    async def _make(self, stack: contextlib.AsyncExitStack, example: Any) -> Any:
        if inspect.isasyncgenfunction(self.factory):
            return await stack.enter_async_context(contextlib.asynccontextmanager(self.factory)(example))
        if inspect.isgeneratorfunction(self.factory):
            return stack.enter_context(contextlib.contextmanager(self.factory)(example))
        made = self.factory(example)
        return await made if inspect.isawaitable(made) else made

    def _checked(self, world: Any) -> World:
        if not isinstance(world, World):
            raise UserError(f"Environment {self.name!r} gave something else than a dse.World", value=repr(world),
                            remedy="yield or return dse.World(deps=...).")  # fmt: skip
        return world


def environment(
    factory: Callable[[Any], Any] | None = None, /, *, revision: str | None = None, name: str | None = None
) -> Any:
    """Declare an environment: ``factory(example)`` makes (or yields) a `World`.

    Args:
        revision: part of every rollout's identity; default a hash of the source.
    """
    if factory is None:
        return lambda fn: environment(fn, revision=revision, name=name)
    return Environment(factory, name=name or str(getattr(factory, "__name__", "environment")),
                       revision=revision or source_revision(factory))  # fmt: skip
