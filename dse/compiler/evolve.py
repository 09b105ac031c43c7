"""Prompts by reflective evolution: gepa's loop over our rollouts, our feedback and a statistical test.

Per mode, the instructions of each predictor are the components (on request the descriptions of tools as well). gepa
keeps the pool, chooses parents from its Pareto front and asks for new texts; a child is taken into the pool when a
paired test on the rows of one minibatch speaks for it, and is then measured on the search rows that no minibatch is
taken from. gepa's own resumption is not used: starting again over stored rollouts and recorded completions takes the
same path and pays for nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse import statistics
from dse.canonical import digest
from dse.compiler import feedback
from dse.compiler.bridge import Bridge, in_thread
from dse.compiler.prune import text_problem
from dse.compiler.search import Proposal, Search
from dse.errors import UserError
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Plan, Prompt
from dse.strategies.base import seed_plan, strategy

__all__ = ["ACCEPT_P", "Evolve", "divided", "reach"]

ACCEPT_P = 0.25
"""One-sided p of the sign-flip test on a minibatch up to which a child is taken into the pool: two rows better and none
worse, or four and one. Where a third of the rows differ, 8 rows take a child that is 10 points worse 5 times in 100
("strictly better" 21 times), one that is 20 points better 45 times. It only decides what is looked at further: select
rows and the sealed gate decide about the program."""
KEEP = 2  # proposals per mode: every one is raced
_TOOL = "tool:"  # of a component that is a tool's description

_RULES = {
    "direct": "The model sees the instructions and the inputs and replies once with the output fields. It has no tools.",
    "tool_call": "The model sees the instructions, the inputs and the tools. It calls tools in rounds, several at once if it "
    "likes, sees their results, and ends by calling `submit` with the output fields.",
    "code": "The model sees the instructions, the inputs and typed stubs of the tools. It writes a Python script that calls "
    "the tools as async functions and ends by calling `submit` with the output fields. The script is linted and "
    "type-checked before it runs in a small Python without files, network, class inheritance or generators. Where it "
    "does not submit, the model sees what it printed or how it failed, and writes another one; variables are kept.",
}
_ASK = {
    "instructions": "Write new instructions with which the model would have done better on these examples and on others "
    "like them. Say how to go about the task: what to look at, in which order, which rules and conventions the expected "
    "answers follow, which mistakes to avoid. Do not repeat the tools' parameters or the format of replies, which the "
    "model is told elsewhere, and do not give the answers of single examples.",
    "description": "Write a new description of this tool with which the model would have used it better: what it is for, "
    "when to call it and when not, what to make of its result. Do not change what its parameters mean.",
}


@dataclass(frozen=True)
class Evolve:
    """Proposes, per mode, up to two sets of evolved instructions.

    Takes at most ``rounds`` reflections per mode and ``V + rounds * (2 * minibatch + V)`` rollouts, V being the search
    rows that are kept for validation (`at_most`).

    Args:
        rounds: of reflection per mode.
        minibatch: rows on which a child is compared with its parent, at least 8.
        modes: to work on; default all of the search.
        overlays: descriptions of the allowed tools are components, too.

    Raises:
        UserError: a number that cannot be.
    """

    rounds: int = 6
    minibatch: int = 8
    modes: tuple[str, ...] | None = None
    overlays: bool = False
    name: str = "evolve"

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 1:
            raise UserError("Evolve needs at least one round", value=repr(self.rounds), remedy="Give a whole number from 1.")
        if type(self.minibatch) is not int or self.minibatch < 8:
            raise UserError("A minibatch has at least 8 rows", value=repr(self.minibatch),
                            remedy="Fewer rows take worse prompts for better ones too often.")  # fmt: skip

    def at_most(self, rows: int, modes: int) -> tuple[int, int]:
        """The most rollouts and reflections on so many search rows and modes."""
        if rows <= self.minibatch:
            return 0, 0
        kept = rows - min(max(self.minibatch, rows // 2), rows - 1)
        return modes * (kept + self.rounds * (2 * self.minibatch + kept)), modes * self.rounds

    async def propose(self, search: Search) -> Sequence[Proposal]:
        found: list[Proposal] = []
        if len(search.rows) <= self.minibatch:
            search.say(f"evolve: {len(search.rows)} search rows are too few: {self.minibatch} are compared at a time, and others "
                       "are needed to validate on")  # fmt: skip
            return found
        for mode in search.modes:
            if (self.modes is None or mode in self.modes) and strategy(mode).seed_prompts(search.spec):
                found += await self._mode(search, mode)
        return found

    async def _mode(self, search: Search, mode: str) -> list[Proposal]:
        base = seed_plan(search.spec, mode, reach(search, mode), search.limits)
        learn, validate = divided(search.rows, max(self.minibatch, len(search.rows) // 2), search.seed)
        texts = {name: prompt.instructions for name, prompt in base.prompts.items()}
        if self.overlays and "overlays" in Plan.model_fields:
            texts |= {_TOOL + name: search.toolbox[name].contract.description for name in base.allow}
        seed = int(digest([search.seed, mode])[7:15], 16)
        result = await in_thread(lambda bridge: _optimize(
            _Adapter(search, base, texts, bridge), texts, learn, validate, self.rounds, self.minibatch, seed), f"evolve-{mode}")
        children = [i for i in range(1, len(result.candidates))
                    if result.val_aggregate_scores[i] >= result.val_aggregate_scores[0]]  # fmt: skip
        best = sorted(children, key=lambda i: (-result.val_aggregate_scores[i], i))
        kept: dict[str, tuple[Plan, int]] = {}
        for index in best:
            plan = plan_of(base, texts, result.candidates[index])
            if plan.plan_id != base.plan_id and len(kept) < KEEP:
                kept.setdefault(plan.plan_id, (plan, index))
        search.say(f"evolve: {mode}: a paired test spoke for {len(result.candidates) - 1} of at most {self.rounds} new prompts; "
                   f"{len(kept)} proposed")  # fmt: skip
        proposals = []
        for number, (plan, index) in enumerate(kept.values(), 1):
            note = (f"evolved in {mode}: {result.val_aggregate_scores[index]:.3f} on {len(validate)} validation rows of search, "
                    f"the seed {result.val_aggregate_scores[0]:.3f}")  # fmt: skip
            proposals.append(Proposal(plan, "evolved" if number == 1 else f"evolved-{number}", notes=(note,)))
        return proposals


def reach(search: Search, mode: str) -> tuple[str, ...]:
    """The tools to work with: the smallest sufficient list, and what `mode` used on rows that it did not solve.

    What is sufficient is known from solved rows only; better prompts are for the others.
    """
    if mode == "direct":
        return ()
    tried = (r.used_tools for r in search.records if r.receipt["mode"] == mode and r.score < search.success)
    return tuple(sorted(set(search.lists.minimal).union(*tried)))


def divided(rows: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """About `count` rows to learn from and the others, clusters whole where there are several; the same on every call."""
    ordered = sorted(rows, key=lambda row: (digest([seed, row.cluster]), digest([seed, row.row_hash])))
    learn: list[Example] = []
    for row in ordered:
        if len(learn) >= count and row.cluster != learn[-1].cluster:
            break
        learn.append(row)
    if len(learn) == len(ordered):  # no cluster would be left to validate on
        learn = ordered[:count]
    return learn, ordered[len(learn) :]


def plan_of(base: Plan, seed: Mapping[str, str], texts: Mapping[str, str]) -> Plan:
    """`base` with these texts; a description that is the contract's own is no overlay."""
    prompts = {name: Prompt(instructions=texts[name], demos=prompt.demos) for name, prompt in base.prompts.items()}
    changed = {name.removeprefix(_TOOL): text for name, text in texts.items() if name.startswith(_TOOL) and text != seed[name]}
    data = {**base.model_dump(), "prompts": {name: prompt.model_dump() for name, prompt in prompts.items()}}
    if changed:
        data["overlays"] = changed
    return Plan.model_validate(data)


def _optimize(adapter: _Adapter, texts: dict[str, str], learn: list[Example], validate: list[Example], rounds: int,
              minibatch: int, seed: int) -> Any:  # fmt: skip
    from gepa.api import optimize

    driven: Any = adapter
    return optimize(
        seed_candidate=dict(texts), trainset=learn, valset=validate, adapter=driven, batch_sampler=_Minibatches(minibatch, seed),
        acceptance_criterion=_PairedTest(learn), stop_callbacks=lambda state: state.i + 1 >= rounds, logger=_Silent(),
        track_best_outputs=False, seed=seed,
    )  # fmt: skip


class _Silent:
    """gepa prints otherwise."""

    def log(self, message: str) -> None:
        """Nothing is kept."""


class _Minibatches:
    """Different rows in every minibatch, all of them before any comes again; no state besides the round."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def next_minibatch_ids(self, loader: Any, state: Any) -> list[Any]:
        ids = list(loader.all_ids())
        stream: list[Any] = []
        epoch = 0
        for _ in range(state.i + 1):
            batch: list[Any] = []
            while len(batch) < min(self.size, len(ids)):
                if not any(one not in batch for one in stream):
                    stream += sorted(ids, key=lambda one: digest([self.seed, epoch, one]))
                    epoch += 1
                batch.append(stream.pop(next(i for i, one in enumerate(stream) if one not in batch)))
        return batch


class _PairedTest:
    """gepa's acceptance criterion: see `ACCEPT_P`."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def should_accept(self, proposal: Any, state: Any) -> bool:
        pairs = zip(proposal.subsample_scores_before, proposal.subsample_scores_after, strict=True)
        clusters = [self.rows[i].cluster for i in proposal.subsample_indices]
        return accepted([after - before for before, after in pairs], clusters)


def accepted(differences: Sequence[float], clusters: Sequence[str]) -> bool:
    """Whether paired differences on a minibatch speak for a child."""
    return statistics.sign_flip(differences, clusters if len(set(clusters)) > 1 else None).p_value <= ACCEPT_P


class _Adapter:
    """Rollouts, feedback and reflection of one mode, for gepa's thread."""

    def __init__(self, search: Search, base: Plan, texts: Mapping[str, str], bridge: Bridge) -> None:
        self.search, self.base, self.texts, self.bridge = search, base, dict(texts), bridge
        self.rows = {row.row_hash: row for row in search.rows}

    def evaluate(self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        plan = plan_of(self.base, self.texts, candidate)
        records = self.bridge.call(self.search.evaluate, {f"{plan.mode}/reach/evolved": plan}, batch, None)
        return EvaluationBatch(outputs=records, scores=[r.score for r in records], trajectories=records)

    def make_reflective_dataset(self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]) -> Any:
        found: dict[str, list[dict[str, Any]]] = {}
        for component in components_to_update:
            records: list[RolloutRecord] = list(eval_batch.trajectories)
            if component.startswith(_TOOL):
                tool = component.removeprefix(_TOOL)
                records = [r for r in records if any(c["tool"] == tool for c in r.receipt["calls"])] or records
            found[component] = [{"text": feedback.described(r, self.rows[r.row_hash], self.search.spec)}
                                for r in feedback.chosen(records)]  # fmt: skip
        return found

    def propose_new_texts(self, candidate: dict[str, str], reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
                          components_to_update: list[str]) -> dict[str, str]:  # fmt: skip
        new: dict[str, str] = {}
        for component in components_to_update:
            examples = [one["text"] for one in reflective_dataset[component]]
            prompt = reflection_prompt(self.search, self.base, component, candidate[component], examples)
            text = block_of(self.bridge.call(self.search.reflect, prompt))
            if text is None or text == candidate[component]:
                continue
            problem = text_problem(text, self.search.spec)
            if problem is not None:
                self.search.say(f"evolve: {self.base.mode}: new instructions left out: {problem}")
                continue
            new[component] = text
        return new


def reflection_prompt(search: Search, base: Plan, component: str, text: str, examples: Sequence[str]) -> str:
    """What the reflection model is asked. Nothing in it depends on time, place or chance."""
    if component.startswith(_TOOL):
        of, kind = f"description of the tool `{component.removeprefix(_TOOL)}`", "description"
    else:
        of, kind = "instructions", "instructions"
    shown = "\n\n".join(f"## Example {number}\n{one}" for number, one in enumerate(examples, 1))
    rules = _RULES.get(base.mode, f"It runs in the mode `{base.mode}`.")
    return (f"You improve the {of} of a program that a language model carries out.\n\n"
            f"# The task\n{feedback.of_task(search.spec, search.toolbox, base.allow)}\n\n# How it runs\n{rules}\n\n"
            f"# The present {of}\n```\n{text}\n```\n\n# What happened with them\n{shown}\n\n# What to write\n{_ASK[kind]} "
            "At most 400 words. Give nothing but the new text, in one block between lines of ```.")  # fmt: skip


def block_of(reply: str) -> str | None:
    """The text between the first and the last fence of a reply; None without two of them or with nothing between."""
    start, end = reply.find("```"), reply.rfind("```")
    if start < 0 or end <= start:
        return None
    first, _, rest = reply[start + 3 : end].partition("\n")
    text = rest if len(first.split()) <= 1 and rest else f"{first}\n{rest}"  # a language may be named
    return text.strip() or None


