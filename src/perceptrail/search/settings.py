"""What a search is told: `hydra.sweeper.*`, as Hydra knows it from each start and so kept light."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf

from perceptrail.errors import UserError, did_you_mean

Direction = Literal["minimize", "maximize"]
DIRECTIONS: dict[str, Direction] = {
    "min": "minimize",
    "max": "maximize",
    "minimize": "minimize",
    "maximize": "maximize",
}
LEAST = {
    "n_trials": 1,
    "n_jobs": 1,
    "retries": 0,
    "seed": 0,
    "max_failures": 1,
    "timeout": 0,
    "patience": 1,
}
NAN = ("fail", "prune", "worst")


@dataclass
class Settings:
    """The search: `hydra.sweeper.*`."""

    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    _target_: str = "hydra_plugins.perceptrail_optuna.OptunaSweeper"
    _recursive_: bool = False
    _convert_: str = "all"

    # How points are chosen: an option of hydra/sweeper/sampler, or a mapping with a _target_.
    sampler: Any = MISSING
    # Which trials end early: an option of hydra/sweeper/pruner, or a mapping with a _target_.
    pruner: Any = MISSING
    # The study goes on where one of this name stopped, in the same storage; null: a new one.
    study_name: str | None = "${hydra.job.name}"
    # A journal file, the URL of a database, or a mapping with the _target_ of an Optuna storage;
    # null: study.journal in hydra.sweep.dir.
    storage: Any = None
    # minimize, maximize, or a list of them; null: what monitor.mode says, else minimize.
    direction: Any = None
    # Trials that the study shall have in all, over every time it is resumed.
    n_trials: int | None = 20
    # Trials at a time: worker processes, or the size of a batch given to another launcher.
    n_jobs: int = 1
    # Of the sampler, and so of the points.
    seed: int = 0
    # How often the parameters of a failed trial are tried again.
    retries: int = 0
    # So many failed trials in a row end the search; null: none do.
    max_failures: int | None = 10
    # The share of failed trials, of each n_jobs that end, above which the search ends; null: none.
    max_failure_rate: float | None = None
    # What a value that is not finite makes of its trial: fail, prune, or worst (the worst so far).
    nan: str = "fail"
    # Seconds after which no further trial begins; those that run are waited for.
    timeout: float | None = None
    # So many trials without a better one end the search; null: they do not.
    patience: int | None = None
    # Functions (study, trial) that are called after each trial and may call study.stop():
    # full names, or mappings with a _target_ such as optuna.terminator.TerminatorCallback.
    callbacks: list[Any] = field(default_factory=list)
    # What is searched: overrides of Hydra's sweep grammar and more, see perceptrail.search.grammar.
    params: dict[str, Any] | None = field(default_factory=dict)
    # The same as versions 1.1 to 1.3 of hydra-optuna-sweeper wrote it.
    search_space: dict[str, Any] | None = field(default_factory=dict)
    # Full name of a function (configuration, trial); what it suggests is an override each.
    custom_search_space: str | None = None
    # Expressions such as sum(model.hidden) <= 512, or full names of functions of the configuration.
    constraints: list[str] = field(default_factory=list)
    # What a run must report to count as best, such as parameters <= 100_000 or val_acc >= 0.9.
    outcome_constraints: list[str] = field(default_factory=list)
    # Points to begin with; the keys that a point leaves out are as they are by default.
    enqueue: list[Any] = field(default_factory=lambda: [{}])
    # {key: seed, values: [0, 1, 2]}: each point is judged by the mean of a run for each value. One
    # that is worse than the best, value by value, with a probability of error below p_value (0.1;
    # by Wilcoxon's test, so after four runs at the earliest; null: never) has no further run.
    repeats: Any = None
    # Another study, address:study, whose trials are taken over with their values; not counted.
    warm_start: str | None = None
    # Whether to draw, in figures/ of hydra.sweep.dir.
    figures: bool = True

    def check(self) -> None:
        """Raise UserError for a number that makes no sense."""
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"hydra.sweeper.{name}={value}: must be at least {low}")
        rate = self.max_failure_rate
        if rate is not None and not 0 <= rate <= 1:
            raise UserError(f"hydra.sweeper.max_failure_rate={rate}: must be from 0 to 1, or null")
        if self.nan not in NAN:
            hint = did_you_mean(self.nan, NAN)
            raise UserError(f"hydra.sweeper.nan={self.nan}: must be one of {', '.join(NAN)}{hint}")
        if self.n_jobs > 1 and str(self.storage).startswith("sqlite"):
            raise UserError(
                "hydra.sweeper.storage: SQLite is not safe for parallel trials; leave it null "
                "(a journal file), or give a PostgreSQL URL"
            )

    def directions(self, config: DictConfig) -> list[Direction]:
        """One direction for each objective: as given, else that of the monitored metric."""
        given = self.direction or OmegaConf.select(config, "monitor.mode") or "minimize"
        directions = [given] if isinstance(given, str) else list(given)
        for direction in directions:
            if direction not in DIRECTIONS:
                raise UserError(
                    f"hydra.sweeper.direction={direction}: must be minimize or maximize, "
                    f"or a list of them{did_you_mean(direction, DIRECTIONS)}"
                )
        return [DIRECTIONS[direction] for direction in directions]


def named_objectives(config: DictConfig, count: int) -> list[str]:
    """What the objectives are called: as the configuration names them, else not at all."""
    named = OmegaConf.select(config, "objectives") or OmegaConf.select(config, "monitor.metric")
    names = [named] if isinstance(named, str) else named
    return list(names) if isinstance(names, Sequence) and len(names) == count else []
