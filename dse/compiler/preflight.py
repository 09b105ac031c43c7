"""What a compile checks and tells before it pays for anything: its data, what it will take at most, and the forecast."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dse.compiler import forecast as forecasts
from dse.compiler.budget import check_price
from dse.compiler.choose import cost_unknown
from dse.compiler.forecast import Forecast
from dse.compiler.gate import MIN_CLUSTERS
from dse.compiler.incumbent import champion_of
from dse.compiler.models import Models
from dse.compiler.options import Options
from dse.compiler.space import Candidate
from dse.errors import DatasetError, MissingHoldout, PriceMissing
from dse.evaluation.evaluator import RolloutRecord, cassette_of
from dse.evaluation.sampling import spread
from dse.objective import unknown
from dse.plan import Plan
from dse.strategies.base import baseline_plan, seed_plan

if TYPE_CHECKING:
    from dse.contracts.tool import ToolContract
    from dse.store.journal import Store

__all__ = ["Preflight", "check_data"]


def check_data(options: Options) -> None:
    """What can be known before anything runs.

    Raises:
        MissingHoldout, DatasetError
    """
    usable = _usable_clusters(options)
    if usable < MIN_CLUSTERS:
        raise MissingHoldout(f"The holdout has fewer than {MIN_CLUSTERS} clusters", value=usable,
                             remedy="Add rows of more clusters, or use more of them; a gate could not decide "
                                    "anything.")  # fmt: skip
    gain = forecasts.detectable(usable, usable)
    options.say(f"plan: {usable} independent sealed rows find "
                + ("no gain" if gain is None else f"a gain of {gain:.2f} or more in quality with 80% probability")
                + ", if a third of the rows differ")  # fmt: skip
    for split in ("search", "select"):
        if not options.data.split(split):
            raise DatasetError(f"The dataset has no {split} rows", value=options.data.name,
                               remedy=f"Give {split} a share of the quota.")  # fmt: skip


def _usable_clusters(options: Options) -> int:
    """Of the sealed rows, as far as they will be used."""
    clusters: int = options.data.holdout_summary()["clusters"]
    return clusters if options.rows.holdout is None else min(clusters, options.rows.holdout)


class Preflight:
    """Of one compile.

    Args:
        models, store: opened for it.
    """

    def __init__(self, options: Options, models: Models, store: Store) -> None:
        self.options, self.models, self.store = options, models, store

    def check_objective(self) -> None:
        """Refuse an objective that needs what certainly nobody will know.

        Raises:
            UserError: cost or latency. PriceMissing: of the judge.
        """
        objective = self.options.task.objective
        self._check_judge()
        for name, model in self.models.by_name.items():
            cassette = cassette_of(model)
            if objective.needs_cost and not self.models.cost_can_be_known(name):
                raise cost_unknown(objective)
            if objective.needs_latency and cassette is not None and cassette.header.latency != "representative":
                raise unknown("latency", "latency_weight" if objective.latency_weight else "max_p95_latency_s")

    def _check_judge(self) -> str | None:
        """What the budget does not let the judge be asked for, where a recording may know it all.

        Raises:
            PriceMissing: the budget bounds money, and the judge has no price.
        """
        judge = self.options.task.metric.judge
        if judge is None or judge.replays:
            return None
        try:
            check_price(str(judge.identity["model"]), self.options.budget, self.options.prices, whose="the judge")
        except PriceMissing:
            if not judge.recorded:
                raise
            return (f"the judge has no price: what {judge.cassette.name} does not answer ends the compile, "
                    "as Budget(usd=) cannot be kept")  # fmt: skip
        return None

    def _priced_tools(self) -> dict[str, ToolContract]:
        """Contracts of tools that have a price, where executing them is paid for: what a recording answers costs nothing."""
        if getattr(self.options.task.environment, "mode", None) == "replay":
            return {}
        contracts = {name: self.options.toolbox[name].contract for name in self.options.spec.tool_names}
        return {name: contract for name, contract in contracts.items() if contract.cost_usd}

    def _sizes(self) -> tuple[int, int, int]:
        """Search, select and holdout rows that will be used."""
        options = self.options
        sealed = options.data.holdout_summary()["rows"]
        search, select = len(options.search_rows()), len(options.select_rows())
        return search, select, sealed if options.rows.holdout is None else min(sealed, options.rows.holdout)

    def _most(self) -> int:
        """Candidates before proposals, the incumbent among them."""
        return 1 + len(self.models.names) * sum(self.options.space.most(mode) for mode in self.options.modes)

    async def tell_plan(self) -> None:
        """How many rollouts this takes at most, and how often the holdout was open."""
        options = self.options
        search, select, holdout = self._sizes()
        most, opened = self._most(), 2 * holdout * options.replicates
        rollouts = search * len(options.modes) + select * most * options.replicates + opened
        times = f" x {options.replicates}" if options.replicates > 1 else ""
        options.say(f"plan: at most {rollouts} rollouts: {search} search rows x {len(options.modes)} modes, {select} select "
                    f"rows x {most} candidates{times}, {holdout} holdout rows x 2{times}; "
                    + (f"proposals of {', '.join(p.name for p in options.proposers)} come to that; " if options.proposers else "")
                    + ("a recording answers them" if self.models.free else "each asks the model at least once"))  # fmt: skip
        if (unpriced := self._check_judge()) is not None:
            options.say(f"plan: {unpriced}")
        before = await self._openings()
        if before:
            options.say(f"plan: the holdout of {options.data.name} was opened {'once' if before == 1 else f'{before} times'} "
                        f"before in this store: another look is tested at 0.05/{before + 1}")  # fmt: skip

    async def _openings(self) -> int:
        """Of any of the sealed rows that will be used: the gate adds its own to them."""

        def choose(sealed: Sequence[Any]) -> list[Any]:
            return spread(sealed, self.options.rows.holdout)

        return await self.store.threaded(functools.partial(self.options.data.holdout_openings, self.store, select=choose))

    async def forecast(self) -> Forecast:
        options = self.options
        search, select, holdout = self._sizes()
        limits, budget = options.task.limits, options.budget
        earlier, judged = await self.store.threaded(self._earlier)
        priced = self._priced_tools()
        examples = options.data.split("search")[:1]
        modes = {}
        for mode in options.modes:
            size = await forecasts.first_request_tokens(
                options.task, seed_plan(options.spec, mode, limits=limits), self.models.default, examples[0])  # fmt: skip
            tools = () if mode == "direct" else tuple(priced.values())
            modes[mode] = forecasts.per_run(mode, size, earlier.get(mode, []), limits, tools)
        each = {mode: options.space.most(mode) * len(self.models.names) for mode in options.modes}
        most = sum(each.values()) + 1
        raced = most if options.allocation == "grid" or most <= 4 else max(4, math.ceil(0.4 * most))
        raced_rows, gated = select * options.replicates, holdout * options.replicates
        stages = {"search": (search * len(modes),) * 2, "select": (raced_rows * raced, raced_rows * most), "holdout": (2 * gated,) * 2}

        def expected(per: str) -> float:
            figures = {mode: getattr(one, per) for mode, one in modes.items()}
            runs = math.fsum(figures[mode] * (search + raced_rows * each[mode] * raced / most) for mode in modes)
            return runs + (raced_rows + 2 * gated) * math.fsum(figures.values()) / len(figures)

        champion, _ = champion_of(options, self.models)
        own_plan = baseline_plan(options.spec, limits) if champion is None else champion.plan
        incumbent = forecasts.most_of(own_plan)
        own, own_tokens = next(iter((one.most_model_calls, one.most_tokens) for one in modes.values()))  # of any mode: the task's limits
        runs = stages["search"][1] + raced_rows * (most - 1) + gated  # besides the incumbent's
        calls, tokens = expected("model_calls"), expected("tokens")
        most_calls: float | None = runs * own + (raced_rows + gated) * incumbent[0]
        most_tokens = forecasts.together([None if one is None else times * one for times, one in
                                          ((runs, own_tokens), (raced_rows + gated, incumbent[1]))])  # fmt: skip
        tools_usd = expected("tools_usd")
        every_tool = max((one.most_tools_usd for one in modes.values()), default=0.0)
        most_tools = runs * every_tool + (raced_rows + gated) * forecasts.most_of_tools(own_plan, priced)
        usd, most_usd = forecasts.price(options.prices, self.models.names, tokens), None
        usd = None if usd is None else usd + tools_usd
        judge, unbounded = forecasts.judging(options.task.metric, judged), []
        if judge is not None and not judge.recorded:
            rollouts = sum(about for about, _ in stages.values())
            cost = forecasts.price(options.prices, (judge.model,), rollouts * judge.tokens)
            calls, tokens = calls + rollouts * judge.model_calls, tokens + rollouts * judge.tokens
            usd = None if usd is None or cost is None else usd + cost
            most_calls = most_tokens = None
            if budget.model_calls is None or budget.tokens is None:
                unbounded.append("a metric asks its judge as often as it likes; Budget(model_calls=, tokens=, usd=) bounds it")
        elif most_tokens is None and budget.tokens is None:
            unbounded.append("tokens, without Limits(tokens=) or Budget(tokens=): answers and what tools return may be of any size")
        if most_tokens is not None:
            most_usd = forecasts.price(options.prices, self.models.names, most_tokens, most=True)
            most_usd = None if most_usd is None else most_usd + most_tools
        usable = _usable_clusters(options)
        return Forecast(
            signature=options.spec.name, models=self.models.names, modes=modes, clusters=usable, candidates=most, stages=stages,
            rows={"search": search, "select": select, "holdout": holdout}, model_calls=calls, tokens=tokens, usd=usd,
            most_model_calls=self._bounded(most_calls, budget.model_calls), most_tokens=self._bounded(most_tokens, budget.tokens),
            most_usd=self._bounded(most_usd, budget.usd), mde=forecasts.detectable(usable, usable),
            openings=await self._openings(), recorded=self.models.free, proposers=tuple(p.name for p in options.proposers),
            budget=asdict(budget), judge=judge, unbounded=tuple(unbounded), tools_usd=tools_usd,
            most_tools_usd=self._bounded(most_tools, budget.usd) if priced else 0.0,
            notes=tuple(filter(None, (self._check_judge(), forecasts.above_limit(modes, options.task, options.prices, self.models.names)))),
        )  # fmt: skip

    def _bounded(self, most: float | None, budget: float | None) -> float | None:
        """The most there can be of something: proposals may take all that a budget has."""
        return most if budget is None else float(budget) if most is None or self.options.proposers else min(most, budget)

    def _earlier(self) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
        """Rollouts of this task with the first model, by mode, and components of what this metric gave any of its rollouts."""
        names, rows = self.store.rollout_table(signature=self.options.spec.name)
        metric = f"{self.options.task.metric.name}@{self.options.task.metric.revision}"
        found: dict[str, dict[str, dict[str, Any]]] = {}
        judged = []
        for row in (dict(zip(names, values, strict=True)) for values in rows):
            if row["model"] == self.models.default.name:
                found.setdefault(row["mode"], {})[row["rollout_id"]] = row  # one row per metric
            if row["metric"] == metric and row["components"]:
                judged.append(json.loads(row["components"]))
        if priced := self._priced_tools():
            for rollout_id, _, mode, calls in self.store.calls(signature=self.options.spec.name):
                if rollout_id in found.get(mode, {}):
                    paid = [priced[call["tool"]].cost_usd for call in calls if call["tool"] in priced and call["outcome"] != "refused"]
                    found[mode][rollout_id] = found[mode][rollout_id] | {"tools_usd": math.fsum(paid)}
        return {mode: list(by_id.values()) for mode, by_id in found.items()}, judged

    def tell_rest(self, found: Mapping[str, Candidate], incumbent: Plan, searched: Sequence[RolloutRecord],
                   call_s: float | None) -> None:  # fmt: skip
        """After the search: what select and holdout will ask of the model, by what each mode asked on search rows."""
        if self.models.free:
            return
        asked: dict[str, list[int]] = {}
        for record in searched:
            asked.setdefault(str(record.receipt["mode"]), []).append(record.model_calls)
        per_run = {mode: sum(calls) / len(calls) for mode, calls in asked.items()}
        each = [per_run.get(one.plan.mode, 1.0) for one in found.values()]
        _, select, holdout = self._sizes()
        rows = select * sum(each) + holdout * (per_run.get(incumbent.mode, 1.0) + sum(each) / len(each))
        calls = self.options.replicates * rows
        text = f"plan: about {calls:.0f} more model calls ({', '.join(f'{m} {c:.1f}' for m, c in per_run.items())} per run)"
        if call_s is not None:
            text += f", about {max(1, round(calls * call_s / 60))} min at the pace so far"
        budget = self.options.budget.model_calls
        if budget is not None:
            left = budget - self.models.purse.calls
            text += f"; the budget has {left} left" + (", likely too few" if left < calls else "")
        self.options.say(text)
