"""Which tainted nodes a pod may run on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator


class Toleration(BaseModel):
    """A taint of nodes that pods put up with, as Kubernetes has it; without a key, every one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _can_match(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None) or not (
            self.key or self.operator == "Exists"
        ):
            raise ValueError("`Equal` takes a key and a value, `Exists` takes no value")
        return self
