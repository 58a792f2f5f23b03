"""The gate's policy: a small YAML file, or the section `promote` of a profile.

`policy.schema.json` beside this file is its JSON schema, for editors;
`python -m toolwise.promotion.policy` prints it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolwise.errors import InputError
from toolwise.evaluation.metrics import ToolsOnMode


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, with keys that differ."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"{key} stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


class GatePolicy(BaseModel):
    """What a checkpoint has to prove before it is promoted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: ToolsOnMode = "greedy"
    """Which tools-on answers are judged."""

    redundant_call_rate_max: float = Field(default=0.05, ge=0, le=1)
    """The upper bound of `redundant_call_rate` must not exceed it."""

    necessary_call_rate_min: float = Field(default=0.90, ge=0, le=1)
    """The lower bound of `necessary_call_rate` must reach it."""

    accuracy_drop_max: float = Field(default=0.02, ge=0, le=1)
    """The upper bound of the accuracy lost against the champion (where there is none: against the
    stage before) must not exceed it."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the two-sided Wilson intervals and of the one-sided bound of the accuracy lost."""

    min_items: int = Field(default=50, ge=1)
    """A criterion that rests on fewer items fails, and so does a benchmark with fewer."""

    per_ability: bool = False
    """Judge every ability by itself as well as all together."""

    benchmarks: tuple[str, ...] = ()
    """Benchmarks, by name, whose items must have been answered."""

    dataset: str | None = Field(default=None, pattern="^[0-9a-f]{8,64}$")
    """Digest, or its beginning, of the only items that count: `benchmark` in `metrics.json`."""

    incomparable_champion: Literal["reject", "baseline"] = "reject"
    """What follows where the champion answered other items, or was measured by another version of
    the metrics: a rejection, or a comparison with the stage before instead."""

    @classmethod
    def load(cls, path: Path) -> GatePolicy:
        """The policy in a YAML file.

        Raises:
            InputError: the file cannot be read or a field is wrong; names file and fields.
        """
        try:
            read = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe one
            return cls.model_validate({} if read is None else read)
        except OSError as error:
            raise InputError(f"{path}: the policy cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: the policy is not YAML: {error}") from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'policy'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise InputError(f"{path}: {faults}") from None


def policy_schema() -> dict[str, Any]:
    """JSON schema of a policy file."""
    schema = GatePolicy.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    print(json.dumps(policy_schema(), indent=2))
