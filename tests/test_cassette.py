"""Cassettes: recording, replaying, refusing what is broken, and explaining what is missing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import CassetteError, CassetteMiss, LimitExceeded, ModelError, ModelUnavailable
from dse.models.lm import Completion, PriceTable, Request, RetryingModel, ToolCallPart, Usage, resolve_model
from dse.store.cassette import Cassette, RecordModel, ReplayModel, compact, request_key
from dse.testing.scripted import ScriptedModel, call, say

SYSTEM = {"role": "system", "content": "You answer questions about expenses.\n" * 40}
TOOLS = [{"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}]


def question(text: str, *, tools: bool = True) -> Request:
    return {"messages": [SYSTEM, {"role": "user", "content": text}], "tools": TOOLS if tools else [], "tool_choice": None}


def ask(model: Any, request: Request, **which: int) -> Completion:
    return asyncio.run(model.complete(request, **which))


def answer(request: Request) -> Completion:
    text = request["messages"][-1]["content"]
    if "call" in text:
        return call(("look", {"z": 1, "a": [text, 2.5, None]}), ("look", "{bad"), text="hm")
    return Completion(f"answer to {text}", usage=Usage(700, 20, "exact"), cost_usd=0.01, cost_source="exact", latency_s=1.25)


def record(path: Path, texts: list[str], **header: Any) -> list[Completion]:
    async def main() -> list[Completion]:
        model = RecordModel(ScriptedModel(answer, params={"temperature": 0.5}), path, **header)
        done = [await model.complete(question(text)) for text in texts]
        await model.aclose()
        return done

    return asyncio.run(main())


def edit(path: Path, number: int, change: dict[str, Any] | bytes) -> None:
    """Change line `number` (from 1) of a plain cassette."""
    lines = path.read_bytes().splitlines(keepends=True)
    new = change if isinstance(change, bytes) else json.dumps({**json.loads(lines[number - 1]), **change}).encode()
    lines[number - 1] = new + b"\n"
    path.write_bytes(b"".join(lines))


# record and replay


def test_a_replay_gives_what_the_recording_gave(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    texts = ["one", "please call", "three"]
    live = record(path, texts)
    assert [c.recorded for c in live] == [False] * 3
    for source in (path, compact(path, tmp_path / "c.jsonl.gz").path):
        model = resolve_model(f"replay:{source}")
        assert (model.name, model.params, model.supports_tools) == ("scripted/model", {"temperature": 0.5}, True)
        for text, before in reversed(list(zip(texts, live, strict=True))):
            after = ask(model, question(text))
            assert after.recorded
            assert after == Completion(**{**vars(before), "recorded": True})
    call_one = live[1].tool_calls[0]
    assert call_one.arguments is not None and list(call_one.arguments) == ["z", "a"]
    replayed = ask(ReplayModel(Cassette.open(path)), question("please call")).tool_calls
    assert replayed[0].arguments is not None and list(replayed[0].arguments) == ["z", "a"]  # as the model wrote them
    assert replayed[1] == ToolCallPart("call_2", "look", None, "{bad")


def test_answers_cannot_be_changed_by_who_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["call"])
    model = ReplayModel(Cassette.open(path))
    first = ask(model, question("call"))
    assert first.tool_calls[0].arguments is not None
    first.tool_calls[0].arguments["z"] = "changed"
    again = ask(model, question("call"))
    assert again.tool_calls[0].arguments is not None and again.tool_calls[0].arguments["z"] == 1


def test_recording_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one", "two"])

    async def main() -> list[bool]:
        inner = ScriptedModel(answer, params={"temperature": 0.5})
        model = RecordModel(inner, path)
        done = [await model.complete(question(text)) for text in ("two", "three", "one", "three")]
        await model.aclose()
        assert [r["messages"][-1]["content"] for r in inner.requests] == ["three"]
        return [c.recorded for c in done]

    assert asyncio.run(main()) == [True, False, True, True]
    assert len(Cassette.open(path)) == 3


def test_replicates_and_occurrences_are_different_questions(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"

    async def main() -> None:
        model = RecordModel(ScriptedModel([f"answer {i}" for i in range(4)]), path)
        for replicate, occurrence in ((0, 0), (0, 1), (1, 0), (1, 1)):
            await model.complete(question("q"), replicate=replicate, occurrence=occurrence)
        await model.aclose()

    asyncio.run(main())
    model = ReplayModel(Cassette.open(path))
    assert ask(model, question("q"), replicate=1, occurrence=0).text == "answer 2"
    assert ask(model, question("q"), occurrence=1).text == "answer 1"
    with pytest.raises(CassetteMiss, match=r"other \(replicate, occurrence\): \(0, 0\), \(0, 1\), \(1, 0\), \(1, 1\)"):
        ask(model, question("q"), replicate=2)


def test_the_same_question_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> str:
        await release.wait()
        return request["messages"][-1]["content"]

    async def main() -> None:
        inner = ScriptedModel(slow)
        model = RecordModel(inner, tmp_path / "c.jsonl")
        tasks = [asyncio.create_task(model.complete(question(f"q{i % 3}"))) for i in range(30)]
        await asyncio.sleep(0)
        release.set()
        done = await asyncio.gather(*tasks)
        await model.aclose()
        assert [c.text for c in done] == [f"q{i % 3}" for i in range(30)]
        assert len(inner.requests) == 3
        assert sum(not c.recorded for c in done) == 3  # paid once each

    asyncio.run(main())
    assert len(Cassette.open(tmp_path / "c.jsonl")) == 3


def test_a_question_asked_from_several_event_loops_is_asked_once(tmp_path: Path) -> None:
    started, waiting = threading.Event(), threading.Barrier(3)

    async def slow(request: Request) -> str:
        started.set()
        await asyncio.to_thread(waiting.wait, 30)
        return "once"

    inner = ScriptedModel(slow)
    model = RecordModel(inner, tmp_path / "c.jsonl")

    async def late() -> Completion:
        task = asyncio.create_task(model.complete(question("q")))
        await asyncio.sleep(0)  # it waits for the first one now
        waiting.wait(30)
        return await asyncio.wait_for(task, 30)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(asyncio.run, model.complete(question("q")))
        assert started.wait(30)
        others = [threads.submit(asyncio.run, late()) for _ in range(2)]  # each waits in a loop of its own
        assert {f.result(60).text for f in (first, *others)} == {"once"}
    asyncio.run(model.aclose())
    assert len(inner.requests) == 1


def test_who_waits_takes_over_when_the_one_who_asked_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        started = asyncio.Event()
        asked = 0

        async def script(request: Request) -> str:
            nonlocal asked
            asked += 1
            started.set()
            if asked == 1:
                await asyncio.Event().wait()
            return "second"

        model = RecordModel(ScriptedModel(script), tmp_path / "c.jsonl")
        first = asyncio.create_task(model.complete(question("q")))
        await started.wait()
        second = asyncio.create_task(model.complete(question("q")))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).text == "second"
        with pytest.raises(asyncio.CancelledError):
            await first
        await model.aclose()

    asyncio.run(main())


def test_a_failure_reaches_everybody_and_is_not_recorded(tmp_path: Path) -> None:
    async def main() -> None:
        go = asyncio.Event()
        asked = 0

        async def script(request: Request) -> Any:
            nonlocal asked
            asked += 1
            await go.wait()
            return ModelUnavailable("down", retry_after_s=1.0) if asked == 1 else say("up")

        model = RecordModel(ScriptedModel(script), tmp_path / "c.jsonl")
        tasks = [asyncio.create_task(model.complete(question("q"))) for _ in range(3)]
        await asyncio.sleep(0)
        go.set()
        failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(f) for f in failed] == [ModelUnavailable] * 3
        assert len({id(f) for f in failed}) == 3
        assert (await model.complete(question("q"))).text == "up"
        await model.aclose()

    asyncio.run(main())
    assert len(Cassette.open(tmp_path / "c.jsonl")) == 1


def test_retries_work_around_a_recording(tmp_path: Path) -> None:
    async def no_wait(seconds: float) -> None: ...

    async def main() -> Completion:
        recorder = resolve_model(ScriptedModel([ModelUnavailable("down"), "up"]), record=tmp_path / "c.jsonl")
        model = RetryingModel(recorder, sleep=no_wait)
        done = await model.complete(question("q"))
        await model.aclose()
        return done

    assert asyncio.run(main()).text == "up"


def test_a_conversation_that_is_too_long_is_recorded_as_such(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"

    async def main() -> None:
        model = RecordModel(ScriptedModel([LimitExceeded("m: too many tokens", limit="context")]), path)
        with pytest.raises(LimitExceeded):
            await model.complete(question("q"))
        with pytest.raises(LimitExceeded):  # a hit: the script has no second reply
            await model.complete(question("q"))
        await model.aclose()

    asyncio.run(main())
    with pytest.raises(LimitExceeded) as caught:
        ask(ReplayModel(Cassette.open(path)), question("q"))
    assert (caught.value.details["limit"], caught.value.what) == ("context", "m: too many tokens")


# what the header says


def test_estimated_usage_stays_estimated(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    done = record(path, ["one", "call"], usage="estimated", source="recorded from a large language model",
                  latency="not representative", recorded="2026-02-03", notes="by hand")  # fmt: skip
    replayed = ask(ReplayModel(Cassette.open(path)), question("one"))
    assert (done[0].usage, replayed.usage) == (Usage(700, 20, "estimated"), Usage(700, 20, "estimated"))
    assert (replayed.cost_usd, replayed.cost_source) == (0.01, "estimated")
    header = Cassette.open(path).header
    assert (header.source, header.latency, header.recorded, header.notes, header.usage) == (
        "recorded from a large language model", "not representative", "2026-02-03", "by hand", "estimated")  # fmt: skip
    prices = PriceTable("list", "2026-01-01", {"scripted/model": (1.0, 10.0)})
    priced = ask(resolve_model(f"replay:{path}", prices=prices), question("one"))
    assert priced.cost_usd == pytest.approx(0.0009)
    assert priced.cost_source == "estimated"


def test_every_entry_keeps_how_well_its_usage_is_known(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    usages = [Usage(5, 6, "exact"), Usage(7, 8, "estimated"), Usage(9, None, "unknown")]

    async def main() -> None:
        model = RecordModel(ScriptedModel([Completion("x", usage=u) for u in usages]), path)
        for index in range(3):
            await model.complete(question(f"q{index}"))
        await model.aclose()

    asyncio.run(main())
    model = ReplayModel(Cassette.open(path))
    assert [ask(model, question(f"q{i}")).usage for i in range(3)] == [*usages[:2], Usage(None, None, "unknown")]


def test_only_hashes_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["secret question"], requests="hash")
    assert b"expenses" not in path.read_bytes()
    cassette = Cassette.open(path)
    assert ask(ReplayModel(cassette), question("secret question")).text == "answer to secret question"
    assert cassette.request(next(iter(cassette))) is None
    cassette.verify()
    with pytest.raises(CassetteMiss, match="hashes only"):
        ask(ReplayModel(cassette), question("another"))


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (ScriptedModel([], name="scripted/other", params={"temperature": 0.5}), "model"),
        (ScriptedModel([], params={"temperature": 0.6}), "params"),
        (ScriptedModel([], params={"temperature": 0.5}, supports_tools=False), "supports_tools"),
    ],
)
def test_another_model_cannot_continue_a_recording(tmp_path: Path, model: ScriptedModel, field: str) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one"])
    path.write_bytes(path.read_bytes() + b'{"key":')  # torn, but not theirs to repair
    before = path.read_bytes()
    with pytest.raises(CassetteError, match=f"another {field}"):
        RecordModel(model, path)
    assert path.read_bytes() == before


# small, deterministic files


def test_long_prompts_are_stored_once_and_a_compacted_file_is_deterministic(tmp_path: Path) -> None:
    texts = [f"question {i}" for i in range(60)]
    record(tmp_path / "a.jsonl", texts, recorded="2026-02-03")
    record(tmp_path / "b.jsonl", texts[::-1], recorded="2026-02-03")
    raw = (tmp_path / "a.jsonl").read_bytes()
    assert raw.count(b"You answer questions") == SYSTEM["content"].count("You answer")
    assert len(raw) < 60 * len(SYSTEM["content"]) / 2
    assert raw != (tmp_path / "b.jsonl").read_bytes()
    for name in "ab":
        compact(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.jsonl.gz")
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(packed) < len(raw) / 4
    compact(tmp_path / "a.jsonl.gz", tmp_path / "c.jsonl.gz")
    assert (tmp_path / "c.jsonl.gz").read_bytes() == packed
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.jsonl", "a.jsonl.gz", "b.jsonl", "b.jsonl.gz", "c.jsonl.gz"]  # fmt: skip


def test_a_compacted_recording_can_be_continued(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", ["one"])
    compact(tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz")
    with pytest.raises(CassetteError, match="compressed"):
        RecordModel(ScriptedModel([]), tmp_path / "a.jsonl.gz")
    compact(tmp_path / "a.jsonl.gz", tmp_path / "again.jsonl")
    done = record(tmp_path / "again.jsonl", ["one", "two"])
    assert [c.recorded for c in done] == [True, False]


def test_compacting_drops_what_nothing_refers_to(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(path, ["one", "two"])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # killed between the blobs of an entry and the entry
    assert b'"two"' in path.read_bytes()
    compact(path, tmp_path / "b.jsonl")
    assert b'"two"' not in (tmp_path / "b.jsonl").read_bytes()
    assert len(Cassette.open(tmp_path / "b.jsonl")) == 1


# broken files


@pytest.mark.parametrize(
    ("number", "change", "what"),
    [
        (1, {"format": "dse-cassette-2"}, "format"),
        (1, {"colour": "red"}, "colour"),
        (1, {"usage": "precise"}, "usage"),
        (1, {"recorded": "yesterday"}, "recorded"),
        (1, b"[]", "Line 1"),
        (2, b"not json", "not JSON"),
        (2, b'{"blob": "0123456789abcdef", "value": NaN}', "not JSON"),
        (2, {"value": {"role": "system", "content": "other"}}, "hash of its value"),
        (2, {"blob": "XYZ"}, "blob"),
        (2, {"more": 1}, "more"),
        (2, b"", "not JSON"),
        (5, {"more": 1}, "more"),
        (5, {"usage": [1]}, "usage"),
        (5, {"usage": [1, -2]}, "usage"),
        (5, {"usage": [1, "2"]}, "usage"),
        (5, {"latency_s": -1}, "latency_s"),
        (5, {"cost_usd": "1"}, "cost_usd"),
        (5, {"key": "short"}, "key"),
        (5, {"messages": ["0123456789abcdef"]}, "no line above"),
        (5, {"messages": []}, "do not fit"),
        (5, {"calls": [{"id": "1", "name": "f"}]}, "either arguments or raw"),
        (5, {"calls": [{"id": "1", "name": "f", "arguments": {}, "raw": ""}]}, "either arguments or raw"),
        (5, b'{"key": "a", "key": "b"}', "twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, number: int, change: dict[str, Any] | bytes, what: str) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one"])
    edit(path, number, change)
    for opened in (lambda: Cassette.open(path), lambda: RecordModel(ScriptedModel([]), path)):
        with pytest.raises(CassetteError, match=what) as caught:
            opened()
        assert caught.value.details["line"] == number


def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one"])
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(CassetteError, match="recorded before"):
        Cassette.open(path)


def test_a_changed_question_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one"])
    Cassette.open(path).verify()
    edit(path, 5, {"replicate": 4})
    cassette = Cassette.open(path)
    with pytest.raises(CassetteError, match="not that of its request"):
        cassette.verify()
    with pytest.raises(CassetteError):
        compact(path, tmp_path / "d.jsonl")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(64):
            file.write(b"a" * 2**20)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CassetteError, match="more than 1048576 bytes"):
        Cassette.open(bomb, max_bytes=2**20)
    record(tmp_path / "c.jsonl", ["one"])
    with pytest.raises(CassetteError, match="more than 100 bytes"):
        Cassette.open(tmp_path / "c.jsonl", max_bytes=100)


@pytest.mark.parametrize("data", [b"", b"plain text\n", b"\x1f\x8b" + b"\x00" * 20, gzip.compress(b"{}\n", mtime=0)[:-4]])
def test_what_is_no_gzip_cassette_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(CassetteError):
        Cassette.open(path)


def test_missing_files_and_unwritable_places_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(CassetteError, match="cannot be read"):
        resolve_model(f"replay:{tmp_path / 'nowhere.jsonl'}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CassetteError, match="cannot be written"):
        RecordModel(ScriptedModel([]), tmp_path / "file" / "c.jsonl")
    with pytest.raises(ModelError, match="not recorded"):
        resolve_model("replay:x", record="y")


@pytest.mark.parametrize("content", [b"precious notes", b"precious notes\n", b'{"format":"other"}'])
def test_a_file_that_is_no_cassette_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    with pytest.raises(CassetteError):
        RecordModel(ScriptedModel([]), path)
    assert path.read_bytes() == content


# interrupted recordings


def test_a_recording_cut_anywhere_keeps_every_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    texts = ["one", "call two", "three ✓"]
    record(path, texts)
    whole = path.read_bytes()
    ends = {i + 1 for i, byte in enumerate(whole) if byte == 10}
    cut = tmp_path / "cut.jsonl"
    near_ends = {end + d for end in ends for d in (-2, -1, 0, 1) if end + d <= len(whole)}
    for size in sorted({0, 1, *range(0, len(whole), 17)} | near_ends):
        cut.write_bytes(whole[:size])
        if size in ends:
            cut_entries = [entry.text for entry in Cassette.open(cut)]
        else:
            with pytest.raises(CassetteError):
                Cassette.open(cut)
        model = RecordModel(ScriptedModel([], params={"temperature": 0.5}), cut)
        held = [entry.text for entry in model.cassette]
        asyncio.run(model.aclose())
        assert held == [entry.text for entry in Cassette.open(cut)]
        if size in ends:
            assert held == cut_entries
        complete = whole[: max((end for end in ends if end <= size), default=0)]
        assert cut.read_bytes() == complete or not complete
    record(cut, texts)
    assert [e.key for e in Cassette.open(cut)] == [e.key for e in Cassette.open(path)]


KILLED = """
import asyncio, os, signal, sys
from dse.store.cassette import RecordModel
from dse.testing.scripted import ScriptedModel

async def script(request):
    if request["messages"][-1]["content"] == "q7":
        os.kill(os.getpid(), signal.SIGKILL)
    return "a" * 5000

async def main():
    model = RecordModel(ScriptedModel(script), sys.argv[1])
    for i in range(20):
        await model.complete({"messages": [{"role": "user", "content": f"q{i}"}]})
        print(i, flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_was_answered_before_a_kill_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [str(i) for i in range(7)]
    assert len(Cassette.open(path)) == 7
    with path.open("ab") as file:
        file.write(b'{"key":"0123')  # what a kill within a write leaves
    with pytest.raises(CassetteError, match="torn"):
        Cassette.open(path)
    inner = ScriptedModel(lambda request: "again")

    async def go_on() -> None:
        model = RecordModel(inner, path)
        for i in range(9):
            await model.complete({"messages": [{"role": "user", "content": f"q{i}"}]})
        await model.aclose()

    asyncio.run(go_on())
    assert [r["messages"][0]["content"] for r in inner.requests] == ["q7", "q8"]
    assert len(Cassette.open(path)) == 9


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_two_recorders_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    inner = ScriptedModel(["x"])
    first = RecordModel(inner, path, fsync=True)
    with pytest.raises(CassetteError, match="somebody else"):
        RecordModel(ScriptedModel(["x"]), path)
    ask(first, question("q"))
    asyncio.run(first.aclose())
    asyncio.run(RecordModel(ScriptedModel(["x"]), path).aclose())
    assert ask(first, question("q")).recorded
    with pytest.raises(CassetteError, match="closed"):
        ask(first, question("another"))
    assert len(inner.requests) == 1  # nothing is paid for that cannot be kept


# misses


def test_a_miss_shows_the_nearest_request(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["Who overspent in Q1?\nName them.", "What is the weather like?", "something else entirely"])
    with pytest.raises(CassetteMiss) as caught:
        ask(ReplayModel(Cassette.open(path)), question("Who overspent in Q2?\nName them."))
    text = str(caught.value)
    assert "-user: Who overspent in Q1?" in text and "+user: Who overspent in Q2?" in text
    assert "differs from message 1 on" in text and "record=FILE" in text
    assert "weather" not in text and "You answer questions" not in text
    assert caught.value.details["key"] == request_key(
        question("Who overspent in Q2?\nName them."), model="scripted/model", params={"temperature": 0.5}
    )


def test_a_miss_because_of_tools_or_choice_says_so(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["one"])
    model = ReplayModel(Cassette.open(path))
    with pytest.raises(CassetteMiss, match="with other tools") as caught:
        ask(model, question("one", tools=False))
    assert '-{"description":"Look."' in caught.value.details["diff"]
    with pytest.raises(CassetteMiss, match="another tool_choice"):
        ask(model, {**question("one"), "tool_choice": "required"})


def test_a_miss_message_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["\n".join(f"line {i} " + "x" * 500 for i in range(200))])
    with pytest.raises(CassetteMiss) as caught:
        ask(ReplayModel(Cassette.open(path)), question("\n".join(f"zeile {i} " + "y" * 500 for i in range(200))))
    assert len(str(caught.value)) < 6000
    assert "more lines" in str(caught.value)


def test_a_difference_deep_in_a_long_line_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record(path, ["word " * 100 + "seven" + " word" * 100])
    with pytest.raises(CassetteMiss) as caught:
        ask(ReplayModel(Cassette.open(path)), question("word " * 100 + "eight" + " word" * 100))
    removed, added = (
        [line for line in caught.value.details["diff"].splitlines() if line.startswith(sign) and line[1] != sign]
        for sign in "-+"
    )
    assert len(removed) == len(added) == 1
    assert "seven" in removed[0] and "eight" in added[0]


@pytest.mark.parametrize(
    "bad", [Completion("\ud800"), Completion("x", usage=Usage(1.5, 1, "exact"))]  # type: ignore[arg-type]
)
def test_an_answer_that_cannot_be_stored_is_an_error_and_leaves_the_file_whole(tmp_path: Path, bad: Completion) -> None:
    class Odd(ScriptedModel):
        async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
            return bad

    model = RecordModel(Odd([]), tmp_path / "c.jsonl")
    with pytest.raises(CassetteError, match="cannot be recorded"):
        ask(model, question("q"))
    asyncio.run(model.aclose())
    assert len(Cassette.open(tmp_path / "c.jsonl")) == 0


def test_an_empty_cassette_says_so(tmp_path: Path) -> None:
    record(tmp_path / "c.jsonl", [])
    with pytest.raises(CassetteMiss, match="no entries"):
        ask(ReplayModel(Cassette.open(tmp_path / "c.jsonl")), question("q"))


# keys

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.lists(_TEXT, min_size=2, max_size=6, unique=True), st.integers(0, 3), st.integers(0, 3))
def test_keys_tell_every_part_of_a_question_apart(texts: list[str], replicate: int, occurrence: int) -> None:
    def key(text: str, model: str = "m", **params: Any) -> str:
        return request_key(question(text), model=model, params=params, replicate=replicate, occurrence=occurrence)

    keys = {key(text) for text in texts}
    keys |= {key(texts[0], "n"), key(texts[0], temperature=0), key(texts[0], temperature=0.0)}
    assert len(keys) == len(texts) + 3
    assert key(texts[0]) == key(texts[0])
    assert (key(texts[0]) == request_key(question(texts[0]), model="m", params={})) == (replicate == occurrence == 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_TEXT, st.text('{}[]",:abc\\\n✓', max_size=6)), max_size=5, unique_by=lambda pair: pair[0]))
def test_any_text_and_any_raw_arguments_survive(tmp_path_factory: Any, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "c.jsonl"

    async def main() -> None:
        replies = [call(("look", raw), ("look", {raw: text}), text=text) for text, raw in pairs]
        model = RecordModel(ScriptedModel(replies), path)
        live = [await model.complete(question(text)) for text, _ in pairs]
        await model.aclose()
        compact(path, path.with_suffix(".gz"))
        for source in (path, path.with_suffix(".gz")):
            replay = ReplayModel(Cassette.open(source))
            for (text, raw), before in zip(pairs, live, strict=True):
                after = await replay.complete(question(text))
                assert (after.text, after.tool_calls) == (before.text, before.tool_calls)
                assert [c.raw for c in after.tool_calls] == [raw, None]
                assert after.tool_calls[1].arguments == {raw: text}

    asyncio.run(main())
