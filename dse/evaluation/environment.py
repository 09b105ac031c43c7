"""Environments: a fresh, isolated world of tool implementations for one rollout."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.contracts.revision import source_revision
from dse.errors import DseError, InfrastructureError, UserError
from dse.redaction import safe_message

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
        own = self.own(toolbox)
        return toolbox.in_world(self.tools, own) if own else None

    def own(self, toolbox: Toolbox) -> set[str]:
        """Tools that reach nothing but this world: it implements them, or they take dependencies, which are its own."""
        given = set() if self.deps is None else {one.name for one in toolbox if one.context_parameter is not None}
        return given | set(self.tools)


class Environment:
    """A factory of worlds: a function, or a generator that cleans up after its ``yield``, sync or async.

    ``note`` says what evidence from this environment must be read with; None where there is nothing to say.
    ``infrastructure`` are the exceptions of tools, of the end state and of the factory that are nobody's failure.
    """

    note: str | None = None
    infrastructure: tuple[type[Exception], ...] = ()

    @staticmethod
    def recorded(cassette: str | Path, **options: Any) -> Environment:
        """An environment whose tool calls are answered from a recording; see `dse.evaluation.recorded.recorded`."""
        from dse.evaluation.recorded import recorded

        return recorded(cassette, **options)

    def __init__(self, factory: Callable[[Any], Any], *, name: str, revision: str,
                 infrastructure: Sequence[type[Exception]] = ()) -> None:  # fmt: skip
        wrong = [one for one in infrastructure if not (isinstance(one, type) and issubclass(one, Exception)) or issubclass(one, DseError)]
        if wrong:
            raise UserError("infrastructure= takes exception types that are not dse's own", value=repr(wrong[0]),
                            remedy="For example infrastructure=(ConnectionError, TimeoutError); dse.errors.InfrastructureError "
                                   "is one anyway.")  # fmt: skip
        self.factory = factory
        self.name = name
        self.infrastructure = tuple(infrastructure)
        # What was scored while these counted as failures of the candidate is not looked at again.
        outside = ",".join(sorted(f"{one.__module__}.{one.__qualname__}" for one in infrastructure))
        self.revision = f"{revision}+{outside}" if outside else revision
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
            InfrastructureError: what it raised is one of `infrastructure`.
        """
        failure: BaseException | None = None
        done = "made no world"
        try:
            async with contextlib.AsyncExitStack() as stack:
                world = self._marked(self._checked(await self._make(stack, example)))
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
            if isinstance(exc, self.infrastructure):
                raise _away(f"Environment {self.name!r} {done} for row {row!r}", exc) from exc
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

    def _marked(self, world: World) -> World:
        """The world, in which failures that are nobody's are told from the candidate's."""
        if not self.infrastructure:
            return world
        given = world.state

        async def layer(call: Any, proceed: Any) -> Any:
            with self._outside(f"{call.name} could not do its work"):
                return await proceed(call)

        def state() -> Any:
            with self._outside("The end state of a world cannot be read"):
                return given() if given is not None else None

        return replace(world, middleware=(*world.middleware, layer), state=None if given is None else state)

    @contextlib.contextmanager
    def _outside(self, what: str) -> Iterator[None]:
        try:
            yield
        except DseError:  # says itself what it is
            raise
        except self.infrastructure as exc:
            raise _away(what, exc) from exc

    def _checked(self, world: Any) -> World:
        if not isinstance(world, World):
            raise UserError(f"Environment {self.name!r} gave something else than a dse.World", value=repr(world),
                            remedy="yield or return dse.World(deps=...).")  # fmt: skip
        return world


def _away(what: str, exc: Exception) -> InfrastructureError:
    return InfrastructureError(what, value=safe_message(exc),
                               remedy="It is tried again in a fresh world; see to what the world depends on.")  # fmt: skip


def environment(
    factory: Callable[[Any], Any] | None = None, /, *, revision: str | None = None, name: str | None = None,
    infrastructure: Sequence[type[Exception]] = (),
) -> Any:  # fmt: skip
    """Declare an environment: ``factory(example)`` makes (or yields) a `World`.

    Args:
        revision: part of every rollout's identity; default a hash of the source and of what was put into it.
        infrastructure: exceptions that mean that something the world depends on is away, such as ``ConnectionError``: what
            tools raise of these is tried again and never scored. In production a program sees them, as `ToolFailed`.
    """
    if factory is None:
        return lambda fn: environment(fn, revision=revision, name=name, infrastructure=infrastructure)
    return Environment(factory, name=name or str(getattr(factory, "__name__", "environment")),
                       revision=revision or source_revision(factory), infrastructure=infrastructure)  # fmt: skip
