"""What a search is told: `hydra.sweeper.*`, as documented where it is registered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from perceptrail.errors import UserError, did_you_mean
from perceptrail.search.space import Space
from perceptrail.search.study import DIRECTIONS


@dataclass(frozen=True)
class Settings:
    """`hydra.sweeper.*`, as documented where they are registered."""

    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    study_name: str
    storage: str | None
    direction: str | Sequence[str] | None
    n_trials: int | None
    n_jobs: int
    seed: int
    retries: int
    max_failures: int | None
    params: Mapping[str, Any] = field(default_factory=dict)
    constraints: Sequence[str] = ()
    enqueue: Sequence[Mapping[str, Any]] = ()
    hook: str | None = None
    figures: bool = True

    def check(self) -> None:
        """Raise UserError for a number that makes no sense."""
        least = {"n_trials": 1, "n_jobs": 1, "retries": 0, "seed": 0, "max_failures": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"hydra.sweeper.{name}={value}: must be at least {low}")
        if self.n_jobs > 1 and (self.storage or "").startswith("sqlite"):
            raise UserError(
                "hydra.sweeper.storage: SQLite is not safe for parallel trials; leave it null "
                "(a journal file), or give a PostgreSQL URL"
            )

    def directions(self, config: DictConfig) -> list[str]:
        """One direction for each objective: as given, else that of the monitored metric."""
        direction = self.direction or OmegaConf.select(config, "monitor.mode") or "minimize"
        directions = [direction] if isinstance(direction, str) else list(direction)
        for given in directions:
            if given not in DIRECTIONS:
                hint = did_you_mean(given, DIRECTIONS)
                raise UserError(
                    f"hydra.sweeper.direction={given}: must be minimize or maximize, "
                    f"or a list of them{hint}"
                )
        return directions

    def facts(self, space: Space) -> dict[str, Any]:
        """What is searched and how, to be recorded."""
        searched = {f"space.{e.key}": e.source for e in space.entries.values()}
        facts: dict[str, Any] = {
            key: source.removeprefix(key.removeprefix("space.") + "=")
            for key, source in searched.items()
        }
        facts |= {f"sampler.{key}": value for key, value in self.sampler.items()}
        facts |= {f"pruner.{key}": value for key, value in self.pruner.items()}
        for name in ("n_trials", "n_jobs", "seed", "retries", "constraints"):
            facts[name] = getattr(self, name)
        return facts


def named_objectives(config: DictConfig, count: int) -> list[str]:
    """What the objectives are called: as the configuration names them, else not at all."""
    named = OmegaConf.select(config, "objectives") or OmegaConf.select(config, "monitor.metric")
    names = [named] if isinstance(named, str) else named
    return list(names) if isinstance(names, Sequence) and len(names) == count else []
