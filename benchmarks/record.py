"""Record completions for the shipped tasks against any endpoint.

    make record LM=openai/gpt-5-mini                                    a dspy model string, its key in the environment
    make record RECORD_ARGS="--base-url http://127.0.0.1:8000/v1"       any OpenAI-compatible server, native tool calls

Runs the same compile as the demo. What is already recorded is replayed, so an interrupted recording goes on where it
stopped. A recording says where it comes from and how far its usage and latency can be trusted.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.searched import measured
from benchmarks.shipped import ROOT, SHIPPED, Shipped
from dse.models.lm import LanguageModel, RetryingModel, resolve_model
from dse.program import Program
from dse.store.cassette import RecordModel, compact


def live_model(args: argparse.Namespace) -> LanguageModel:
    """The endpoint, with retries for endpoints that are asked for."""
    if args.base_url:
        from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition, register_provider

        provider, _, _ = args.lm.partition("/")
        register_provider(
            ProviderDefinition.chat(AccessPolicy(provider=provider, base_url=args.base_url), compat=OpenAIChatCompat(),
                                    placeholder_key="none"),
            supports=ModelSupport(function_calling=True),
        )  # fmt: skip
    params: dict[str, Any] = {"timeout": args.timeout_s}
    model = resolve_model(args.lm, params=params)
    return model if args.attempts == 1 else RetryingModel(model, attempts=args.attempts)


def record(shipped: Shipped, args: argparse.Namespace) -> None:
    raw = Path(args.work) / f"{shipped.name}.jsonl"
    raw.parent.mkdir(parents=True, exist_ok=True)
    model = RecordModel(live_model(args), raw, source=args.source, usage=args.usage, latency=args.latency, notes=args.notes)
    started = time.monotonic()
    # A slow endpoint must not end runs early: what a limit cuts off would be missing from the recording.
    task = shipped.task()
    task = dataclasses.replace(task, limits=task.limits.model_copy(update={"active_s": 36_000.0}))
    with tempfile.TemporaryDirectory() as folder:
        result = shipped.compile(model, folder, task=task, concurrency=args.concurrency, progress=_progress(shipped.name),
                                 say=lambda line: print(line, flush=True))  # fmt: skip
        measured(shipped, result, model, Path(folder), task=task, concurrency=args.concurrency, progress=_progress(shipped.name))
        inputs, deps = shipped.extra(shipped.load())
        program = Program(task.signature, result.plans[result.winner], lm=model, toolbox=task.toolbox, deps=deps)
        print(program(**inputs))
    from dse.portal import run_sync

    run_sync(model.aclose)
    compact(raw, shipped.cassette)
    print(f"{shipped.name}: {result.winner} against {result.incumbent}: {result.verdict}; "
          f"{shipped.cassette.relative_to(ROOT)} in {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip


def _progress(name: str) -> Any:
    def show(what: str, done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            print(f"{name} {what}: {done}/{total}", flush=True)

    return show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lm", default="openai/gpt-5-mini", help="dspy model string; with --base-url PROVIDER/MODEL of your choice"
    )
    parser.add_argument("--base-url", help="an OpenAI-compatible endpoint")
    parser.add_argument("--only", action="append", choices=[s.name for s in SHIPPED])
    parser.add_argument("--work", default=str(ROOT / "out" / "record"), help="where the uncompressed recording grows")
    parser.add_argument("--source", default="recorded from a large language model")
    parser.add_argument("--usage", choices=["exact", "estimated"], default="exact")
    parser.add_argument("--latency", choices=["representative", "not representative"], default="representative")
    parser.add_argument("--notes", default="")
    parser.add_argument("--timeout-s", type=float, default=600.0)
    parser.add_argument("--attempts", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=8)
    args = parser.parse_args()
    for shipped in SHIPPED:
        if not args.only or shipped.name in args.only:
            record(shipped, args)


if __name__ == "__main__":
    main()
