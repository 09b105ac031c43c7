"""What runs in a process of a Ray cluster: attempts at rollouts, with the model far away.

An attempt is a stream of messages to the driver: questions, each with a number, and at last the row or an error. Answers
come as calls of ``answer``. Ray is not imported here: the driver makes an actor of `Worker`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import traceback
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse.errors import DseError, UserError
from dse.evaluation.freight import Freight, unpack
from dse.evaluation.rollout import Rollout, attempt
from dse.plan import Plan
from dse.program import Program

if TYPE_CHECKING:
    from dse.contracts.tool import Rate
    from dse.evaluation.dataset import Example
    from dse.models.lm import Completion, Request

__all__ = ["Job", "ModelName", "Worker", "carried", "raised"]


@dataclass(frozen=True)
class ModelName:
    """What a program knows of its model."""

    name: str
    params: Mapping[str, Any]
    supports_tools: bool


@dataclass(frozen=True)
class Job:
    """A rollout on its way. ``identity``: of program, implementations and environment, as the driver has them."""

    rollout_id: str
    plan: Plan
    example: Example
    replicate: int
    kept: bool
    model: ModelName | None
    identity: tuple[str, ...]
    pays: bool = False


def identity(program: Program, environment: Any) -> tuple[str, ...]:
    return (program.program_id, program.toolbox.revision(program.plan.allow),
            f"{environment.name} {environment.revision}" if environment else "")  # fmt: skip


def carried(error: Exception) -> bytes:
    """An error with its class and details; one that cannot be pickled as its text."""
    if not isinstance(error, DseError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))


def raised(data: bytes) -> Exception:
    try:
        error: Exception = pickle.loads(data)
    except Exception as exc:  # a class that only the other side has
        return RuntimeError(f"an error that cannot be read here: {exc}")
    return error


class Worker:
    """Runs attempts, any number at a time."""

    def __init__(self) -> None:
        self._freights: dict[str, Freight] = {}
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._attempts: dict[int, _Attempt] = {}

    async def pid(self) -> int:
        return os.getpid()

    async def attempt(self, number: int, key: str, data: bytes, job: Job) -> AsyncIterator[tuple[Any, ...]]:
        """Messages to the driver, ``("row", row)``, ``("error", bytes)`` or ``("ended",)`` at last.

        Args:
            number: of the attempt, for `answer` and `end`.
            key: of `data`, the packed task, which is unpacked once.
        """
        one = self._attempts[number] = _Attempt()
        running = asyncio.create_task(self._run(one, key, data, job))
        running.add_done_callback(lambda _: one.out.put_nowait(None))
        one.running = running
        try:
            while (message := await one.out.get()) is not None:
                yield message
            if running.cancelled():
                yield ("ended",)
            elif isinstance(failed := running.exception(), Exception):
                yield ("error", carried(failed))
            elif failed is not None:
                raise failed
            else:
                yield ("row", running.result())
        finally:
            running.cancel()
            self._attempts.pop(number, None)

    async def answer(self, number: int, question: int, value: Any, error: bytes | None) -> None:
        if (one := self._attempts.get(number)) is not None:
            one.answered(question, value, error)

    async def end(self, number: int) -> None:
        """Nobody waits for it any more."""
        if (one := self._attempts.get(number)) is not None and one.running is not None:
            one.running.cancel()

    async def _run(self, one: _Attempt, key: str, data: bytes, job: Job) -> dict[str, Any]:
        if key not in self._freights:
            self._freights[key] = unpack(data)
        freight = self._freights[key]
        model = None if job.model is None else _Asking(one, job.model)
        program = self._program(key, freight, job, model)
        mine = identity(program, freight.environment)
        if mine != job.identity:
            raise UserError("A worker has another version of the task than the process that evaluates it",
                            value=f"{mine} instead of {job.identity}",
                            remedy="Install the same code on every machine of the cluster; start workers anew after a change.")  # fmt: skip
        rollout = Rollout(job.rollout_id, program, job.example, job.replicate, freight.environment, freight.deps, job.kept,
                          functools.partial(one.ask, "pay") if job.pays else None)
        _current.set(one)
        return await attempt(rollout, model)

    def _program(self, key: str, freight: Freight, job: Job, model: Any) -> Program:
        found = self._programs.get(mine := (key, job.identity, job.model.name if job.model else None))
        if found is None:
            toolbox = freight.toolbox()
            toolbox.elsewhere = _slot
            found = self._programs[mine] = Program(freight.signature, job.plan, lm=model, toolbox=toolbox, deps=freight.deps,
                                                    checks=freight.checks)  # fmt: skip
        return found


class _Attempt:
    """Questions of one attempt, and who waits for their answers."""

    def __init__(self) -> None:
        self.out: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()
        self.running: asyncio.Task[dict[str, Any]] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0

    async def ask(self, kind: str, *about: Any) -> Any:
        self._asked += 1
        question, answer = self._asked, asyncio.get_running_loop().create_future()
        self._waiting[question] = answer
        self.out.put_nowait((kind, question, *about))
        try:
            return await answer
        except asyncio.CancelledError:
            self.out.put_nowait(("drop", question))
            raise
        finally:
            del self._waiting[question]

    def answered(self, question: int, value: Any, error: bytes | None) -> None:
        waiting = self._waiting.get(question)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(value)
        else:
            waiting.set_exception(raised(error))


_current: ContextVar[_Attempt] = ContextVar("dse_attempt")


async def _slot(name: str, rate: Rate, longest_s: float) -> float | None:
    """Rates are the driver's: they hold for all workers together."""
    wait: float | None = await _current.get().ask("slot", name, rate, longest_s)
    return wait


class _Asking:
    """The driver's model."""

    def __init__(self, attempt: _Attempt, model: ModelName) -> None:
        self._attempt = attempt
        self.name = model.name
        self.params = dict(model.params)
        self.supports_tools = model.supports_tools

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        completion: Completion = await self._attempt.ask("model", request, replicate, occurrence)
        return completion

    async def aclose(self) -> None:
        """The model is the driver's."""
