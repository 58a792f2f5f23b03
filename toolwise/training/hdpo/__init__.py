"""HDPO, Hierarchical Decoupled Policy Optimization (arXiv 2604.08545).

`hdpo_advantages` and `hdpo_loss` are pure functions of tensors; `HDPOTrainer` is a TRL trainer.
"""

from typing import TYPE_CHECKING, Any

from toolwise.training.hdpo.advantages import HDPOAdvantages, hdpo_advantages
from toolwise.training.hdpo.loss import HDPOLoss, hdpo_loss
from toolwise.training.hdpo.rewards import accuracy_rewards, efficiency_rewards

if TYPE_CHECKING:
    from toolwise.training.hdpo.trainer import HDPOConfig, HDPOTrainer

__all__ = [
    "HDPOAdvantages",
    "HDPOConfig",
    "HDPOLoss",
    "HDPOTrainer",
    "accuracy_rewards",
    "efficiency_rewards",
    "hdpo_advantages",
    "hdpo_loss",
]


def __getattr__(name: str) -> Any:
    """The trainer on first use: importing TRL takes seconds that the pure functions don't need."""
    if name in ("HDPOConfig", "HDPOTrainer"):
        from toolwise.training.hdpo import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
