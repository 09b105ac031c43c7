"""What an artifact file holds, as data: program, evidence and envelope.

Every model refuses unknown fields. A change of any of them (plan, limits, contracts and objective included) is a
new schema version with a migration: see `dse.artifacts.artifact`.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

import dse
from dse.artifacts.seal import Seal
from dse.canonical import digest
from dse.contracts.signature import SignatureSpec
from dse.contracts.tool import Effect, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.objective import Objective
from dse.plan import Plan, program_id

__all__ = ["NO_ID", "PAIRED_COLUMNS", "SCHEMA_VERSION", "Content", "Envelope", "Evidence", "envelope_digest"]

SCHEMA_VERSION = 2
PAIRED_COLUMNS = (
    "row_hash", "cluster", "candidate_score", "incumbent_score", "candidate_cost", "incumbent_cost",
    "candidate_latency", "incumbent_latency",
)  # fmt: skip
NO_ID = "sha256:" + "0" * 64

Id = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Score = Annotated[float, Field(ge=0, le=1)]
Source = Literal["exact", "estimated", "unknown"]


def _unset(value: Any) -> bool:
    return not value


def _once(value: Any) -> bool:
    return bool(value == 1)


class Data(BaseModel):
    """A part of an artifact. Fields are attributes and, as in the file, keys: ``row.quality``, ``row["quality"]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True,
                              validate_by_name=True, validate_by_alias=True)  # fmt: skip

    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in type(self).model_fields else default


# ---- content: the program ---------------------------------------------------------------------------------


class _Field(Data):
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    desc: str
    sensitive: bool


class FieldData(_Field):
    required: Literal[True]


class OptionalFieldData(_Field):
    """An input that may be left out; only such a field has a default."""

    required: Literal[False]
    default: Any


class SignatureData(Data):
    """A signature as data: `SignatureSpec.to_dict()` and its id."""

    name: str
    signature_id: Id
    instructions: str
    inputs: tuple[FieldData | OptionalFieldData, ...]
    outputs: tuple[FieldData, ...]

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not name.isidentifier() or len(name) > 200:  # it names a folder of the registry
            raise ValueError("a signature's name is an identifier of at most 200 characters")
        return name

    def compute_id(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"signature_id"}))


class ToolIds(Data):
    interface_id: Id
    policy_id: Id


class ModelData(Data):
    name: str
    params: dict[str, Any]


class ProgramData(Data):
    """What is executed; ``contracts`` holds exactly the tools on the plan's allow-list."""

    signature: SignatureData
    plan: Plan
    contracts: dict[str, ToolContract]
    tool_ids: dict[str, ToolIds]
    model: ModelData
    program_id: Id

    def compute_tool_ids(self) -> dict[str, ToolIds]:
        return {name: ToolIds(interface_id=contract.interface_id, policy_id=contract.policy_id)
                for name, contract in self.contracts.items()}  # fmt: skip

    def compute_id(self) -> str:
        """`dse.plan.program_id` of the data in here. Needs a contract for every allowed tool."""
        spec = cast(SignatureSpec, SimpleNamespace(signature_id=self.signature.compute_id()))
        toolbox = cast(Toolbox, {name: SimpleNamespace(contract=c) for name, c in self.contracts.items()})
        return program_id(spec, self.plan, toolbox, self.model.name, self.model.params)


# ---- content: the evidence --------------------------------------------------------------------------------


class SplitData(Data):
    rows: Count
    clusters: Count
    hash: str


class SplitsData(Data):
    search: SplitData
    select: SplitData
    holdout: SplitData


class DatasetData(Data):
    name: str
    revision: str
    split: SplitsData


class MetricData(Data):
    name: str
    revision: str
    kind: Literal["exact", "judge"]


class EnvironmentData(Data):
    name: str
    revision: str


class CandidateRow(Data):
    """One candidate on the rows it was run on. Cost, tokens, latency and calls are means per row."""

    candidate: str
    mode: str
    program_id: Id
    allow: tuple[str, ...]
    n: Count
    quality: Score | None
    quality_low: float | None
    quality_high: float | None
    cost_usd: Amount | None
    cost_source: Source
    tokens_in: Amount | None
    tokens_out: Amount | None
    usage_source: Source
    latency_s: Amount | None
    latency_source: Annotated[str, Field(pattern=r"^(measured|recorded|measured/recorded|unknown)$")]
    model_calls: Amount
    tool_calls: Amount
    failures: Count
    model: str | None = Field(default=None, exclude_if=_unset)
    source: str | None = Field(default=None, exclude_if=_unset)


class PairedData(Data):
    """All that the gate was given (`dse.compiler.gate.evidence`), and what the columns of its rows are."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Id, str, Score, Score, Amount | None, Amount | None, Amount | None, Amount | None], ...]
    objective: Objective
    baseline_exposure: Amount
    candidate_exposure: Amount
    alpha: float
    power: float
    seed: int

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if columns != PAIRED_COLUMNS:
            raise ValueError(f"the columns are {', '.join(PAIRED_COLUMNS)}")
        return columns


class IncumbentData(Data):
    program_id: Id
    artifact_id: Id | None
    kind: Literal["baseline", "champion"]
    mode: str
    model: str | None = Field(default=None, exclude_if=_unset)


class SpendData(Data):
    model_calls: Count
    input_tokens: Count | None
    output_tokens: Count | None
    usage_source: Source
    cost_usd: Amount | None
    cost_source: Source


class StageSpend(SpendData):
    """What one stage took of one model. Replayed completions count with what they cost when they were recorded."""

    stage: str
    model: str
    rollouts: Count


class RoundData(Data):
    """One round of a race: rollouts made in it, who stayed, and why the others left."""

    rollouts: Count
    rows: Count
    kept: tuple[str, ...]
    dropped: dict[str, str]


class RaceData(Data):
    """How the select split was spent. ``units`` are the race's cost units, ``grid_units`` what the full grid would take."""

    allocation: str
    rollouts: Count
    grid_rollouts: Count
    units: Amount
    grid_units: Amount
    rounds: tuple[RoundData, ...]
    finalists: tuple[str, ...]
    chosen_because: str


class ProposerData(Data):
    """What one proposer did: rollouts on search rows, requests to the reflection model, candidates it gave."""

    name: str
    revision: str
    candidates: tuple[str, ...]
    rollouts: Count
    reflections: Count
    notes: tuple[str, ...]


class RemovalData(Data):
    """The measured cost of leaving tools out, all else equal: utility of ``narrow`` minus ``wide`` on select rows."""

    wide: str
    narrow: str
    removed: tuple[str, ...]
    effects: Count
    change: float
    low: float
    high: float
    rows: Count


class RemovedTool(Data):
    """A declared tool that the program cannot reach."""

    name: str
    effect: Effect


class DemoData(Data):
    """Hashes of the rows that demonstrations were taken from."""

    rows: tuple[Id, ...]


class Evidence(Data):
    """Why this program: what it was measured on and against, and what came out.

    ``gate`` is `dse.compiler.gate.GateResult.to_dict()`; ``allow_lists`` has what each policy of making an
    allow-list kept, and why. No times and no hosts: equal inputs and outcomes give an equal artifact.
    """

    dataset: DatasetData
    metric: MetricData
    environment: EnvironmentData | None
    toolbox_revision: str
    objective: Objective
    seed: int
    inputs_digest: Id
    modes: tuple[CandidateRow, ...]
    gate: dict[str, Any]
    paired: PairedData
    incumbent: IncumbentData
    candidates_tried: Count
    holdout_openings: Count
    spend: SpendData
    allow_lists: dict[str, Any]
    removed_tools: tuple[RemovedTool, ...]
    demos: DemoData
    model_label: str
    price_table: str | None
    notes: tuple[str, ...]
    stages: tuple[StageSpend, ...] = Field(default=(), exclude_if=_unset)
    race: RaceData | None = Field(default=None, exclude_if=_unset)
    proposers: tuple[ProposerData, ...] = Field(default=(), exclude_if=_unset)
    pruned: dict[str, str] = Field(default_factory=dict, exclude_if=_unset)
    front: tuple[str, ...] = Field(default=(), exclude_if=_unset)
    removals: tuple[RemovalData, ...] = Field(default=(), exclude_if=_unset)
    models: tuple[str, ...] = Field(default=(), exclude_if=_unset)
    reflection_model: str | None = Field(default=None, exclude_if=_unset)
    replicates: Count = Field(default=1, exclude_if=_once)

    @field_validator("gate")
    @classmethod
    def _has_verdict(cls, gate: dict[str, Any]) -> dict[str, Any]:
        if gate.get("verdict") not in ("PROMOTE", "KEEP", "INSUFFICIENT"):
            raise ValueError("the gate's verdict is PROMOTE, KEEP or INSUFFICIENT")
        return gate


class Content(Data):
    schema_version: Literal[2]
    kind: Literal["dse-artifact"]
    program: ProgramData
    evidence: Evidence
    artifact_id: Id


# ---- envelope ---------------------------------------------------------------------------------------------


class GitData(Data):
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
    dirty: bool


class Envelope(Data):
    """When, where and with what an artifact was made. Not part of its id."""

    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
    duration_s: Amount | None
    dse_version: str
    dspy_version: str | None
    pydantic_monty_version: str | None
    python: str
    git: GitData | None
    host: str | None
    parent: Id | None
    budget: dict[str, Any] | None
    digest: Id
    signature: Seal | None

    @classmethod
    def here(cls, *, duration_s: float | None = None, parent: str | None = None,
             budget: Mapping[str, Any] | None = None, folder: str | Path = ".") -> Envelope:  # fmt: skip
        """An envelope for an artifact made now, on this machine, from the git checkout at `folder` (if it is one)."""
        return cls(
            created=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            duration_s=duration_s, dse_version=dse.__version__, dspy_version=_version("dspy"),
            pydantic_monty_version=_version("pydantic-monty"), python=platform.python_version(), git=_git(folder),
            host=platform.node() or None, parent=parent, budget=None if budget is None else dict(budget),
            digest=NO_ID, signature=None,
        )  # fmt: skip

    def compute_digest(self, artifact_id: str) -> str:
        return envelope_digest(artifact_id, self.model_dump(mode="json"))


def envelope_digest(artifact_id: str, envelope: Mapping[str, Any]) -> str:
    signed = {key: value for key, value in envelope.items() if key not in ("digest", "signature")}
    return digest({"artifact_id": artifact_id, "envelope": signed})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: str | Path) -> GitData | None:
    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20,
                              check=True)  # fmt: skip
        return done.stdout.strip()

    try:
        return GitData(commit=ask("rev-parse", "HEAD"), dirty=bool(ask("status", "--porcelain")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # no git, no checkout, no commit yet
