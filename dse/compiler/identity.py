"""What identifies a compile: equal inputs make the same compile, which goes on where it stopped and looks at the holdout once."""

from __future__ import annotations

from typing import Any

from dse.compiler.models import Models
from dse.compiler.options import Options
from dse.compiler.revision import revision_of
from dse.plan import SEMANTICS_VERSION

__all__ = ["inputs_of"]


def inputs_of(options: Options, models: Models) -> dict[str, Any]:
    """Everything that goes into a compile but the incumbent."""
    task, spec, data, toolbox, space = options.task, options.spec, options.data, options.toolbox, options.space
    metric, environment = task.metric, task.environment
    return {
        "signature": spec.signature_id, "semantics": SEMANTICS_VERSION,
        "contracts": {name: [toolbox[name].contract.interface_id, toolbox[name].contract.policy_id]
                      for name in spec.tool_names},
        "dataset": [data.revision, dict(data.split_hashes), dict(data.cluster_hashes)],
        "metric": [metric.name, metric.revision],
        "environment": [environment.name, environment.revision] if environment else None,
        "toolbox": toolbox.revision(spec.tool_names), "objective": task.objective.to_dict(),
        "limits": task.limits.model_dump(mode="json"), "required": list(task.required), "modes": list(options.modes),
        "rows": [options.rows.search, options.rows.select, options.rows.holdout],
        "space": {mode: [list(space.allow_of(mode)), space.demos_of(mode), space.cross] for mode in options.modes},
        "search": [[one.name, revision_of(one)] for one in options.proposers],
        "allocation": options.allocation, "replicates": options.replicates,
        "success": options.success, "seed": options.seed, "models": models.described(),
        "prices": options.prices.to_dict() if options.prices else None,
    }  # fmt: skip
