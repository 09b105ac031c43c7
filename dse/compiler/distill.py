"""Distilled scripts: the reflection model writes one program for the whole signature, the data says what it is worth.

A script is checked before anything runs, run on the search rows without a model, and shown what it got wrong. A
revision is kept if it is worth more on the same rows: see `worth`. What is proposed is a candidate like any other:
the race and the gate decide on rows that no script was written from.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dse.compiler.cascades import cascades, hands_over, rule_of
from dse.compiler.distill_prompt import MAX_PROMPT, Briefing, Outcome
from dse.compiler.folding import texts
from dse.compiler.search import Proposal, Search
from dse.compiler.secrets import secrets_of_all
from dse.errors import PlanError
from dse.evaluation.evaluator import RolloutRecord
from dse.evaluation.sampling import spread
from dse.plan import Plan
from dse.runtime.guest import names_used
from dse.runtime.sandbox import extract_code
from dse.runtime.sandbox.source import parse
from dse.strategies.base import check_plan
from dse.strategies.script import check_script, script_api, script_plan

if TYPE_CHECKING:
    from dse.contracts.tool import ToolContract
    from dse.evaluation.dataset import Example

__all__ = ["Distill", "memorised", "worth"]

LONG_TEXT = 20  # characters from which text of one row's input in a script is no rule any more
_HANDING_OVER = 0.01  # what abstaining costs besides the next stage, where nothing has a price
_ALL_STUBS = 12_000  # characters of stubs up to which a script may use every tool


def memorised(script: str, rows: Sequence[Example], known: str = "") -> list[str]:
    """What a script holds of single rows: their ids, and texts of at least 20 characters from their inputs, also where it
    puts them together from constants.

    Args:
        known: what is no row's own, such as instructions and stubs.
    """
    texts = {row.row_hash: json.dumps(row.inputs, ensure_ascii=False, sort_keys=True) for row in rows}
    ids = {row.id for row in rows}
    clusters = {row.row_hash: row.cluster for row in rows}
    several = len(set(clusters.values())) > 1
    found = []
    for line, text in _constants(script):
        if text in ids and (len(text) >= LONG_TEXT or not text.isalpha()) and text not in known:
            found.append(f"line {line}: {text!r} is the id of a row")
            continue
        plain = json.dumps(text, ensure_ascii=False)[1:-1]
        if len(text.strip()) < LONG_TEXT or text in known:
            continue
        holders = {clusters[name] if several else name for name, whole in texts.items() if plain in whole}
        if len(holders) == 1:
            found.append(f"line {line}: {text!r} occurs in the input of one example only; use a general rule, or abstain")
    return found


def _constants(script: str) -> list[tuple[int, str]]:
    try:
        return texts(parse(script))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def worth(search: Search, plan: Plan, records: Iterable[RolloutRecord]) -> float:
    """What a script is worth on some rows, as the first stage of a cascade.

    Where it answers: the utility of its answer. Where it hands over: that of the best program with a model on this row,
    less a hundredth. Where it ends without either, nothing.
    """
    after = _after_handing_over(search)
    try:
        rule = rule_of(search, plan)
    except PlanError:
        rule = ()
    values = []
    for record in records:
        if record.outcome == "ok":
            values.append(search.objective.utility(record.score, record.cost_usd, record.latency_s))
        elif hands_over(record, rule):
            values.append(after.get(record.row_hash, after[""]) - _HANDING_OVER)
    return math.fsum(values)


def _after_handing_over(search: Search) -> dict[str, float]:
    """Utility by row of the program with a model that is best over all its rows; under "" its mean."""
    found: dict[str, dict[str, float]] = {}
    for record in search.records:
        if record.model_calls:
            utility = search.objective.utility(record.score, record.cost_usd, record.latency_s)
            found.setdefault(record.candidate, {})[record.row_hash] = utility
    rows = max((len(by_row) for by_row in found.values()), default=0)
    means = {name: math.fsum(by_row.values()) / len(by_row) for name, by_row in found.items() if 2 * len(by_row) >= rows}
    if not means:
        return {"": 0.0}
    best = min(means, key=lambda name: (-means[name], name))
    return {**found[best], "": means[best]}


@dataclass(frozen=True)
class _Version:
    """A script that passed the check, with what it did."""

    script: str
    plan: Plan
    name: str
    outcomes: tuple[Outcome, ...]
    worth: float

    @property
    def records(self) -> list[RolloutRecord]:
        return [outcome.record for outcome in self.outcomes]

    def count(self, said: str) -> int:
        return sum(outcome.said == said for outcome in self.outcomes)


@dataclass(frozen=True)
class Distill:
    """Has scripts written and improved.

    Args:
        rounds: improvements asked for after the first script.
        examples: rows that are shown with how they were solved; of the others, as many as there is room for.
        candidates: scripts that are written independently of each other, from examples in another order.
        repairs: attempts to pass the check, for each script; they cost no rollouts.
        cascades: cascades that begin with the script and are proposed with it.
        most_characters: of one prompt.
    """

    rounds: int = 3
    examples: int = 8
    candidates: int = 1
    repairs: int = 2
    cascades: int = 2
    most_characters: int = MAX_PROMPT
    name: str = "distill"

    async def propose(self, search: Search) -> Sequence[Proposal]:
        """Scripts that solve at least one search row, and cascades that begin with them.

        Raises:
            BudgetExhausted: from the search.
        """
        proposals: list[Proposal] = []
        seen: set[str] = set()
        for number in range(self.candidates):
            writing = _Writing(self, search, number)
            version = await writing.run()
            if version is None or version.plan.plan_id in seen:
                continue
            seen.add(version.plan.plan_id)
            script = writing.proposal(version)
            proposals.append(script)
            later = replace(search, records=[*search.records, *version.records])
            proposals += await cascades(later, {**search.pool, version.name: script}, first=version.name, most=self.cascades)
        return proposals


@dataclass
class _Writing:
    """One script, from the first prompt to the best version."""

    knobs: Distill
    search: Search
    number: int
    measured: list[str] = field(default_factory=list)
    last: str = ""

    def __post_init__(self) -> None:
        search = self.search
        self.all_rows = (*search.rows, *search.more)
        self.label = "distilled" if self.number == 0 else f"distilled-{self.number + 1}"
        self.tools = search.spec.tool_names
        api = script_api(search.spec, self._contracts())
        if len(api) > _ALL_STUBS:  # then only what successful runs used, and what has to stay
            self.tools = tuple(name for name in self.tools if name in {*search.lists.union, *search.required})
            api = script_api(search.spec, self._contracts())
        self.known = f"{search.spec.instructions}\n{api}"
        rows, solved = self._rows(), self._solved()
        self.briefing = Briefing(
            spec=search.spec, api=api, rows=rows, shown=self.knobs.examples, solved=solved, records=search.records,
            secrets=secrets_of_all(search.spec, rows, search.records), long=LONG_TEXT, most=self.knobs.most_characters,
        )  # fmt: skip

    def _contracts(self) -> dict[str, ToolContract]:
        return {name: self.search.toolbox[name].contract for name in self.tools}

    def _rows(self) -> list[Example]:
        """Rows that were run first, over as many clusters as possible; another order for every script."""
        ran = {record.row_hash for record in self.search.records}
        rows = spread([row for row in self.all_rows if row.row_hash in ran], None)
        rows += spread([row for row in self.all_rows if row.row_hash not in ran], None)
        if self.number:
            random.Random(f"{self.search.seed} {self.number}").shuffle(rows)
        return rows

    def _solved(self) -> dict[str, list[RolloutRecord]]:
        """Verified rollouts by row: scripts first, then the shorter ones."""
        found: dict[str, list[RolloutRecord]] = {}
        for record in self.search.records:
            if record.outcome == "ok" and record.score >= self.search.success:
                found.setdefault(record.row_hash, []).append(record)

        def rank(record: RolloutRecord) -> tuple[bool, bool, int, int, str]:
            kinds = [entry["kind"] for entry in record.journal]
            return "feed" not in kinds, "code_error" in kinds, kinds.count("feed"), len(kinds), record.candidate

        return {name: sorted(records, key=rank) for name, records in found.items()}

    async def run(self) -> _Version | None:
        self.search.say(f"distill: writing a script from {len(self.all_rows)} search rows")
        best, problem = await self._written(self.briefing.first())
        if best is None:
            self.search.say(f"distill: no script passed the check: {problem}")
            return None
        self._say(best, "")
        later: tuple[str, tuple[Outcome, ...], str] | None = None
        for _ in range(self.knobs.rounds):
            if best.count("right") == len(best.outcomes):
                break
            version, problem = await self._written(self.briefing.improve(best.script, best.outcomes, later))
            if version is None and not problem:  # asked again, it would say the same again
                break
            if version is None:
                later = (self.last, (), f"it did not pass the check: {problem}")
            elif self._better(version, best):
                best, later = version, None
                self._say(best, "kept")
            else:
                self._say(version, "not kept")
                later = (version.script, version.outcomes, "on the same rows it was worth less than the present script")
        if not any(outcome.record.outcome == "ok" and outcome.record.score > 0 for outcome in best.outcomes):
            self.search.say("distill: the script solves no search row; it is not proposed")
            return None
        return best

    def _better(self, new: _Version, old: _Version) -> bool:
        """Paired: both ran on the same rows."""
        return new.worth > old.worth + 1e-9

    def _say(self, version: _Version, verdict: str) -> None:
        counts = ", ".join(f"{version.count(said)} {said}" for said in ("right", "wrong", "abstained", "failed"))
        self.search.say(f"distill: {version.name}: {counts}" + (f"; {verdict}" if verdict else ""))

    # --- one version

    async def _written(self, prompt: str) -> tuple[_Version | None, str]:
        """A script that passes the check, after some repairs, with its rollouts; else what is wrong with the last one.

        Nothing is wrong with a script that was measured before; it is not measured again.
        """
        problem = ""
        for attempt in range(self.knobs.repairs + 1):
            script = extract_code(await self.search.reflect(prompt)).strip()
            self.last = script
            problem = await self._problem(script)
            if not problem:
                return None if script in self.measured else await self._measured(script), ""
            if attempt < self.knobs.repairs:
                prompt = self.briefing.repair(script, problem)
        return None, problem

    async def _problem(self, script: str) -> str:
        """What keeps a script from being run: check, memorised rows, or what no plan may have."""
        if not script:
            return "- The reply holds no script."
        search = self.search
        checked = await check_script(search.spec, script, self._contracts())
        lines = [checked.describe()] if checked.problems else []
        lines += memorised(script, self.all_rows, self.known)
        if not lines:
            plan = self._plan(script)
            try:
                check_plan(search.spec, plan)
                if "abstain" in names_used(script):
                    rule_of(search, plan)
            except PlanError as exc:
                lines.append(f"{exc.what} ({exc.value}). {exc.remedy}")
        return "\n".join(f"- {line}" for line in lines[:12])

    def _plan(self, script: str) -> Plan:
        plan = script_plan(self.search.spec, script, limits=self.search.limits)
        required = set(self.search.required) - set(plan.allow)
        return plan if not required else script_plan(self.search.spec, script, allow=(*plan.allow, *sorted(required)),
                                                     limits=self.search.limits)  # fmt: skip

    async def _measured(self, script: str) -> _Version:
        self.measured.append(script)
        name = f"script/own/{self.label}.{len(self.measured)}"
        plan = self._plan(script)
        records = await self.search.evaluate({name: plan}, self.briefing.rows, None)
        rows = {row.row_hash: row for row in self.all_rows}
        outcomes = tuple(self._outcome(rows[record.row_hash], record) for record in records)
        # what the script saw must not reach a prompt either
        spec = self.search.spec
        secrets = secrets_of_all(spec, self.briefing.rows, [*self.search.records, *records])
        self.briefing = replace(self.briefing, secrets=secrets)
        return _Version(script, plan, name, outcomes, worth(self.search, plan, records))

    def _outcome(self, row: Example, record: RolloutRecord) -> Outcome:
        if record.outcome == "ok":
            return Outcome(row, record, "right" if record.score >= self.search.success else "wrong")
        error = record.receipt["error"] or {}
        said = "abstained" if record.error_class == "Abstained" else "failed"
        told = [text for text in (error.get("what"), error.get("value")) if text]
        return Outcome(row, record, said, str(told[-1] if said == "abstained" and told else ": ".join(map(str, told))))

    def proposal(self, version: _Version) -> Proposal:
        counts = ", ".join(f"{version.count(said)} {said}" for said in ("right", "wrong", "abstained", "failed"))
        note = f"a script written from {len(self.all_rows)} search rows and improved on them: {counts} there"
        return Proposal(version.plan, self.label, tuple(sorted(row.row_hash for row in self.all_rows)), (note,))
