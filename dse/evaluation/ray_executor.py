"""Rollouts in the processes of a Ray cluster; needs ``pip install 'dse-compiler[ray]'``.

The model stays here, with its one budget, one recording and one rate: workers send their requests, and what comes back is
what a local rollout would have got. A worker that dies takes its attempts with it; the evaluator starts them again, and a
new worker takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from dse.canonical import sha256_hex
from dse.errors import InfrastructureError, UserError, WorkerLost
from dse.evaluation.freight import Freight, pack
from dse.evaluation.ray_worker import Job, ModelName, Worker, carried, identity, raised
from dse.evaluation.rollout import Rollout

if TYPE_CHECKING:
    from dse.models.lm import LanguageModel

__all__ = ["RayExecutor", "needs_ray"]

_AT_ONCE = 100_000  # calls of one worker: nothing that a driver does may wait for another attempt


def needs_ray() -> Any:
    """
    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as exc:
        raise UserError("The executor 'ray' needs Ray", value=str(exc), remedy="pip install 'dse-compiler[ray]'") from exc
    return ray


@dataclass
class _Slot:
    """A place for a worker."""

    worker: Any = None
    started: asyncio.Task[Any] | None = None
    load: int = 0


class RayExecutor:
    """Runs rollouts in workers of a Ray cluster, each attempt in the one that has the fewest.

    Args:
        workers: processes; default as many as the cluster has processors for.
        address: of a cluster. Default: the one this process is connected to, that of ``RAY_ADDRESS``, or a new one on this
            machine, which ends with `aclose`.
        cpus: processors that one worker takes.
        start_s: how long a worker may take to start, in seconds: a cluster without room for it lets it wait for ever.
        options: further options of the workers' actors, such as ``runtime_env`` or ``resources``.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, *, workers: int | None = None, address: str | None = None, cpus: float = 1.0,
                 start_s: float = 120.0, **options: Any) -> None:  # fmt: skip
        self._ray = needs_ray()
        if workers is not None and (type(workers) is not int or workers < 1):
            raise UserError("The number of workers is a whole number from 1", value=workers, remedy="Leave it out for all.")
        self.workers, self.address, self.cpus, self.start_s, self.options = workers, address, cpus, start_s, options
        self._slots: list[_Slot] = []
        self._owned = False
        self._numbers = itertools.count()
        self._packed: dict[tuple[int, ...], tuple[str, Any, Any]] = {}
        self._starting = anyio.Lock()

    # --- workers

    async def _start(self) -> None:
        async with self._starting:
            if self._slots:
                return
            try:
                count = await anyio.to_thread.run_sync(self._connect)
            except Exception as exc:
                raise InfrastructureError("There is no Ray cluster", value=f"{type(exc).__name__}: {exc}",
                                          remedy="Start one, or leave out its address for one on this machine.") from exc  # fmt: skip
            self._slots = [_Slot() for _ in range(count)]

    def _connect(self) -> int:
        """Connect, and say how many workers there shall be."""
        ray = self._ray
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
            ray.init(address=self.address, include_dashboard=None if self.address else False, log_to_driver=False,
                     configure_logging=False)  # fmt: skip
            self._owned = True
        return self.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))

    def _take(self) -> _Slot:
        slot = min(self._slots, key=lambda one: one.load)
        if slot.worker is None:
            actor = self._ray.remote(Worker)
            slot.worker = actor.options(num_cpus=self.cpus, max_restarts=0, max_concurrency=_AT_ONCE, **self.options).remote()
            slot.started = None
        if slot.started is None or slot.started.cancelled():  # with the event loop of an earlier evaluation
            slot.started = asyncio.ensure_future(self._first_word(slot.worker))
        slot.load += 1
        return slot

    async def _first_word(self, worker: Any) -> None:
        with anyio.move_on_after(self.start_s):
            await worker.pid.remote()
            return
        self._ray.kill(worker)
        raise WorkerLost(f"No worker started within {self.start_s:g} s", value=f"{self.cpus:g} processors each",
                         remedy="Is there room in the cluster? Ask for fewer workers or cpus, or wait longer with start_s.")  # fmt: skip

    async def pids(self) -> list[int]:
        """Process ids of the workers there are, each on its own machine."""
        return [await slot.worker.pid.remote() for slot in self._slots if slot.worker is not None]

    async def aclose(self) -> None:
        """End the workers, and the cluster where it was started here."""
        slots, self._slots = self._slots, []
        for slot in slots:
            if slot.worker is not None:
                self._ray.kill(slot.worker)
        self._packed.clear()
        if self._owned:
            self._owned = False
            await anyio.to_thread.run_sync(self._ray.shutdown)

    # --- rollouts

    async def run(self, rollout: Rollout, model: LanguageModel | None) -> dict[str, Any]:
        """
        Raises:
            WorkerLost: the worker died; what it did is gone.
            UserError: the task cannot be sent, or is another one there.
        """
        await self._start()
        key, data = self._pack(rollout)
        program = rollout.program
        asked = None if model is None else ModelName(model.name, dict(model.params), model.supports_tools)
        job = Job(rollout.rollout_id, program.plan, rollout.example, rollout.replicate, rollout.kept, asked,
                  identity(program, rollout.environment), rollout.pay is not None)  # fmt: skip
        slot = self._take()
        worker, number = slot.worker, next(self._numbers)
        conversation = _Conversation(worker, number, rollout, model)
        try:
            assert slot.started is not None
            await asyncio.shield(slot.started)
            stream = worker.attempt.options(num_returns="streaming").remote(number, key, data, job)
            async for reference in stream:
                kind, *about = await reference
                if kind == "row":
                    row: dict[str, Any] = about[0]
                    return row
                if kind == "error":
                    raise raised(about[0])
                conversation.hear(kind, *about)
        except self._ray.exceptions.RayTaskError as exc:  # in our own code, or in what was to be imported
            raise UserError("A worker cannot run rollouts", value=str(exc.cause), remedy=str(exc)[-2000:]) from exc
        except (self._ray.exceptions.RayError, WorkerLost) as exc:
            if slot.worker is worker:
                slot.worker = None
            raise _lost(exc) from exc
        except BaseException:
            worker.end.remote(number)
            raise
        finally:
            slot.load -= 1
            await conversation.over()
        raise _lost("the attempt was ended there")

    def _pack(self, rollout: Rollout) -> tuple[str, Any]:
        program, environment = rollout.program, rollout.environment
        checks = tuple(program.checks.values())
        parts = (program.signature, program.toolbox, rollout.deps, environment, *checks)
        mine = tuple(map(id, parts))
        if mine not in self._packed:
            data = pack(Freight.of(program.signature, program.toolbox, rollout.deps, environment, checks))
            self._packed[mine] = sha256_hex(data), self._ray.put(data), parts  # kept, so that their ids stay theirs
        key, data, _ = self._packed[mine]
        return key, data


class _Conversation:
    """Questions of one attempt, answered here while it goes on."""

    def __init__(self, worker: Any, number: int, rollout: Rollout, model: LanguageModel | None) -> None:
        self._worker, self._number, self._rollout, self._model = worker, number, rollout, model
        self._answering: dict[int, asyncio.Task[None]] = {}

    def hear(self, kind: str, question: int, *about: Any) -> None:
        if kind == "drop":
            if (answering := self._answering.get(question)) is not None:
                answering.cancel()
            return
        answering = asyncio.create_task(self._answer(kind, question, *about))
        self._answering[question] = answering
        answering.add_done_callback(lambda _: self._answering.pop(question, None))

    async def _answer(self, kind: str, question: int, *about: Any) -> None:
        value: Any = None
        error: bytes | None = None
        try:
            if kind == "slot":
                name, rate, longest_s = about
                value = self._rollout.program.toolbox.reserve_slot(name, rate, anyio.current_time(), longest_s)
            elif kind == "pay":
                assert self._rollout.pay is not None
                await self._rollout.pay(*about)
            else:
                assert self._model is not None
                request, replicate, occurrence = about
                value = await self._model.complete(request, replicate=replicate, occurrence=occurrence)
        except Exception as exc:
            error = carried(exc)
        self._worker.answer.remote(self._number, question, value, error)

    async def over(self) -> None:
        """Nobody waits for answers any more; requests under way are given up, and accounted for, before this returns."""
        with anyio.CancelScope(shield=True):
            under_way = list(self._answering.values())
            for answering in under_way:
                answering.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


def _lost(why: Any) -> WorkerLost:
    if isinstance(why, WorkerLost):  # several attempts may have waited for it: each gets an error of its own
        return WorkerLost(why.what, value=why.value, remedy=why.remedy)
    return WorkerLost("A worker was lost", value=str(why).strip().splitlines()[0],
                      remedy="Its rollouts are started again; look for what ended it (memory, a machine that went away).")  # fmt: skip
