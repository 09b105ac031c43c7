"""What types make up themselves (ids, times) and write down in a form of their own: runs are kept, decided and replayed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field, field_serializer

import dse
from dse.errors import ModelUnavailable, ReplayDiverged, RunSuspended, SignatureError
from dse.portal import run_sync
from dse.strategies.tool_call import _Rounds
from dse.testing import ScriptedModel, call, say

MODES = ("tool_call", "code")


class Line(BaseModel):
    name: str
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    at: dt.datetime = Field(default_factory=dt.datetime.now)


class Seen:
    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.keys: list[str] = []
        self.up = True


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[Seen], line: Line) -> str:
    """Look."""
    ctx.deps.lines.append(line)
    return str(line.id)


@dse.tool(effect="write", idempotent=True)
async def add(ctx: dse.ToolContext[Seen], line: Line) -> str:
    """Add."""
    ctx.deps.lines.append(line)
    ctx.deps.keys.append(ctx.idempotency_key)
    if not ctx.deps.up:
        raise ModelUnavailable("down")
    return str(line.id)


@dse.tool(effect="write", approval="always")
async def order(ctx: dse.ToolContext[Seen], line: Line) -> str:
    """Order."""
    ctx.deps.lines.append(line)
    return str(line.id)


class Shop(dse.Signature):
    """Keep the shop."""

    question: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = [look, add, order]


class Report(dse.Signature):
    """Report."""

    question: str = dse.InputField()
    answer: Line = dse.OutputField()
    tools = [look]


DONE = call(("submit", {"answer": "done"}))


def calling(tool: str, mode: str) -> Any:
    if mode == "code":
        return say(f"[[ ## code ## ]]\nprint(await {tool}({{'name': 'x'}}))\n\n[[ ## completed ## ]]")
    return call((tool, {"line": {"name": "x"}}))


def done(mode: str) -> Any:
    return say("[[ ## code ## ]]\nsubmit(answer='done')\n\n[[ ## completed ## ]]") if mode == "code" else DONE


def program(tool: str, mode: str, place: Path, *replies: Any, **more: Any) -> dse.Program:
    return dse.Program(Shop, mode, lm=ScriptedModel([calling(tool, mode), *replies, done(mode)]), deps=Seen(),
                       store=place / "runs.db", **more)  # fmt: skip


def stopped(run: Callable[[], Any], error: type[dse.DseError]) -> str:
    with pytest.raises(error) as caught:
        run()
    return str(caught.value.details["run_id"])


@pytest.mark.parametrize("mode", MODES)
def test_arguments_that_a_type_makes_up_are_those_that_were_recorded(mode: str, tmp_path: Path) -> None:
    shop = program("look", mode, tmp_path)
    made = shop(question="?").receipt
    again = shop.replay(made["run_id"]).receipt
    assert again["calls"][0]["arguments"] == made["calls"][0]["arguments"]
    assert again["calls"][0]["arguments_hash"] == made["calls"][0]["arguments_hash"]
    assert again["transcript_hash"] == made["transcript_hash"] and len(shop.deps.lines) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("snapshots", [True, False])
def test_a_run_goes_on_past_such_a_call(mode: str, snapshots: bool, tmp_path: Path) -> None:
    shop = program("look", mode, tmp_path, ModelUnavailable("down"))
    run_id = stopped(lambda: shop(question="?"), ModelUnavailable)
    resumed = shop.resume(run_id, snapshots=snapshots)
    assert resumed.answer == "done" and len(shop.deps.lines) == 1
    assert resumed.receipt["calls"][0]["arguments"]["line"]["id"] == str(shop.deps.lines[0].id)
    assert shop.replay(run_id).answer == "done"


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_is_executed_again_has_its_arguments_and_its_key(mode: str, tmp_path: Path) -> None:
    shop = program("add", mode, tmp_path)
    shop.deps.up = False
    run_id = stopped(lambda: shop(question="?"), ModelUnavailable)
    shop.deps.up = True
    receipt = shop.resume(run_id, snapshots=False).receipt
    first, second = shop.deps.lines
    assert first == second and len(set(shop.deps.keys)) == 1
    assert receipt["calls"][0]["arguments"]["line"]["id"] == str(first.id)
    assert shop.replay(run_id).answer == "done"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("snapshots", [True, False])
def test_what_is_executed_is_what_was_shown(mode: str, snapshots: bool, tmp_path: Path) -> None:
    shop = program("order", mode, tmp_path)
    run_id = stopped(lambda: shop(question="?"), RunSuspended)
    (shown,) = shop.store.pending(run_id)  # type: ignore[union-attr]
    assert stopped(lambda: shop.resume(run_id), RunSuspended) == run_id  # nobody has decided: the same is asked
    (again,) = shop.store.pending(run_id)  # type: ignore[union-attr]
    assert again["arguments_hash"] == shown["arguments_hash"]
    shop.store.approve(run_id, shown["call_id"], arguments_hash=shown["arguments_hash"], by="ann")  # type: ignore[union-attr]
    receipt = shop.resume(run_id, snapshots=snapshots).receipt
    (line,) = shop.deps.lines
    assert str(line.id) == shown["arguments"]["line"]["id"] == receipt["calls"][0]["arguments"]["line"]["id"]
    assert receipt["calls"][0]["arguments_hash"] == shown["arguments_hash"]
    assert shop.replay(run_id).receipt["transcript_hash"] == receipt["transcript_hash"]


def test_a_call_that_was_granted_and_not_begun_is_executed_as_it_was_shown(tmp_path: Path) -> None:
    shown: list[str] = []

    def approve(request: Any) -> bool:
        shown.append(request.arguments["line"]["id"])
        return True

    shop = program("order", "tool_call", tmp_path, approve=approve)
    run = shop.new_run({"question": "?"})

    def full(entry: dict[str, Any]) -> None:
        if entry["kind"] == "approval":
            raise ModelUnavailable("down")

    run.journal.subscribers.append(full)
    run_id = stopped(lambda: run_sync(lambda: shop.execute(run)), ModelUnavailable)
    assert shop.deps.lines == []
    shop.resume(run_id)
    assert [str(line.id) for line in shop.deps.lines] == shown and len(shown) == 1


def test_a_denied_call_is_replayed(tmp_path: Path) -> None:
    shop = program("order", "tool_call", tmp_path, approve=lambda request: (False, "no"))
    made = shop(question="?").receipt
    again = shop.replay(made["run_id"]).receipt
    assert again["calls"] == [{**made["calls"][0], "latency_s": again["calls"][0]["latency_s"]}] and shop.deps.lines == []


def test_another_call_in_the_place_of_a_recorded_one_is_still_noticed(tmp_path: Path) -> None:
    shop = program("look", "tool_call", tmp_path, ModelUnavailable("down"))
    run_id = stopped(lambda: shop(question="?"), ModelUnavailable)
    journal = shop.store.run(run_id)[1]  # type: ignore[union-attr]
    (intent,) = (entry for entry in journal if entry["kind"] == "tool_intent")
    assert intent["given"].startswith("sha256:") and intent["arguments"]["line"]["id"]
    changed = dse.Program(Shop, "tool_call", lm=ScriptedModel([DONE]), deps=Seen(), store=shop.store)
    with pytest.MonkeyPatch.context() as patch:
        execute = _Rounds.execute

        async def politer(self: Any, calls: list[Any]) -> Any:
            return await execute(self, [(name, {"line": {"name": "y"}} if name == "look" else given) for name, given in calls])

        patch.setattr(_Rounds, "execute", politer)
        with pytest.raises(ReplayDiverged):
            changed.resume(run_id)


@pytest.mark.parametrize("mode", ["direct", *MODES])
def test_outputs_that_a_type_makes_up_are_those_that_were_recorded(mode: str, tmp_path: Path) -> None:
    reply = {"direct": say('[[ ## answer ## ]]\n{"name": "x"}\n\n[[ ## completed ## ]]'),
             "tool_call": call(("submit", {"answer": {"name": "x"}})),
             "code": say("[[ ## code ## ]]\nsubmit(answer={'name': 'x'})\n\n[[ ## completed ## ]]")}[mode]  # fmt: skip
    report = dse.Program(Report, mode, lm=ScriptedModel([reply]), deps=Seen(), store=tmp_path / "runs.db")
    made = report(question="?")
    again = report.replay(made.receipt["run_id"])
    assert again.answer == made.answer and again.receipt["transcript_hash"] == made.receipt["transcript_hash"]


# --- inputs


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> float:
        return self.net * 1.19


@dataclasses.dataclass
class Item:
    name: str
    key: str = dataclasses.field(init=False, default="k")


class Renamed(BaseModel):
    id: int = Field(validation_alias="orderId", serialization_alias="order_id")


class Shown(BaseModel):
    day: dt.date

    @field_serializer("day")
    def _day(self, value: dt.date) -> str:
        return value.strftime("%d.%m.%Y")


class Internal(BaseModel):
    name: str
    tenant: str = Field(exclude=True)


class Tidy(BaseModel):
    name: Annotated[str, BeforeValidator(str.strip)]
    price: Decimal = Decimal("1.50")
    day: dt.date = dt.date(2024, 1, 2)
    kinds: set[int] = {3, 1}
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    other: int = Field(1, alias="otherName")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.name)


def asking(kind: Any) -> type[dse.Signature]:
    return type("Asking", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"it": kind, "answer": str},
        "it": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [
    (Order, Order(net=1.0)), (Item, Item("a")), (Renamed, {"orderId": 1}), (Shown, {"day": "2024-01-02"}),
    (Internal, {"name": "a", "tenant": "t"}),
], ids=lambda one: getattr(one, "__name__", ""))  # fmt: skip
def test_an_input_that_cannot_be_read_again_is_refused_before_anything_happens(kind: Any, value: Any, tmp_path: Path) -> None:
    model = ScriptedModel([])
    asked = dse.Program(asking(kind), "direct", lm=model, store=tmp_path / "runs.db")
    with pytest.raises(SignatureError, match="An input changes") as caught:
        asked(it=value)
    assert caught.value.code == "DSE120" and "it" in str(caught.value.value)
    assert model.requests == [] and asked.store.runs() == []  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "value"), [
    (Tidy, Tidy(name=" a ", otherName=2)), (Tidy, {"name": " a "}), (bytes, b"abc"), (Decimal, Decimal("1E+3")),
    (dt.timedelta, dt.timedelta(1.5)), (float, 3), (set[int], {3, 1}), (dict[str, Any], {"a": [1, None]}),
])  # fmt: skip
def test_inputs_that_can_be_read_again_work(kind: Any, value: Any, tmp_path: Path) -> None:
    replies = [ModelUnavailable("down"), say("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")]
    asked = dse.Program(asking(kind), "direct", lm=ScriptedModel(replies), store=tmp_path / "runs.db")
    run_id = stopped(lambda: asked(it=value), ModelUnavailable)
    assert asked.resume(run_id).answer == asked.replay(run_id).answer == "yes"
