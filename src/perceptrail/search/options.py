"""The samplers and pruners that ship, as `hydra/sweeper/sampler` and `hydra/sweeper/pruner`.

Every argument of theirs is a key, so that it can be set without a plus; null leaves it as the class
has it. Hydra reads this at each start: Optuna is not imported for it.
"""

from typing import Any

_Options = dict[str, dict[str, Any]]


def _node(target: str, arguments: str, **given: Any) -> dict[str, Any]:
    return {"_target_": target, **dict.fromkeys(arguments.split()), **given}


def _sampler(name: str, arguments: str, **given: Any) -> dict[str, Any]:
    return _node(f"optuna.samplers.{name}", f"seed {arguments}", **given)


def _pruner(name: str, arguments: str = "", **given: Any) -> dict[str, Any]:
    return _node(f"optuna.pruners.{name}", arguments, **given)


_GENETIC = (
    "mutation mutation_prob crossover crossover_prob swapping_prob constraints_func "
    "elite_population_selection_strategy child_generation_strategy after_trial_strategy"
)
_EXHAUSTIVE = "perceptrail.search.sampling.Exhaustive"

SAMPLERS: _Options = {
    "tpe": _sampler(
        "TPESampler",
        "prior_weight consider_magic_clip consider_endpoints n_startup_trials n_ei_candidates "
        "gamma weights warn_independent_sampling constant_liar constraints_func",
        multivariate=True,
        group=True,
    ),
    "gp": _sampler(
        "GPSampler",
        "independent_sampler n_startup_trials deterministic_objective constraints_func",
        warn_independent_sampling=False,
    ),
    "cmaes": _sampler(
        "CmaEsSampler",
        "x0 sigma0 n_startup_trials independent_sampler consider_pruned_trials restart_strategy "
        "popsize inc_popsize use_separable_cma with_margin lr_adapt source_trials",
        warn_independent_sampling=False,
    ),
    "qmc": _sampler(
        "QMCSampler",
        "qmc_type independent_sampler warn_asynchronous_seeding",
        scramble=True,
        warn_independent_sampling=False,
    ),
    "random": _sampler("RandomSampler", ""),
    "grid": _node(_EXHAUSTIVE, "seed shuffle"),
    "brute_force": _node(_EXHAUSTIVE, "seed", shuffle=True),
    "nsgaii": _sampler("NSGAIISampler", _GENETIC, population_size=20),
    "nsgaiii": _sampler(
        "NSGAIIISampler", f"{_GENETIC} reference_points dividing_parameter", population_size=20
    ),
    "motpe": _sampler("MOTPESampler", ""),  # gone from Optuna: to say what to take instead
}

_STEPS = "interval_steps n_min_trials"
_MEDIAN = _pruner("MedianPruner", _STEPS, n_startup_trials=5, n_warmup_steps=1)

PRUNERS: _Options = {
    "none": _pruner("NopPruner"),
    "median": _MEDIAN,
    "percentile": _pruner(
        "PercentilePruner", f"n_startup_trials n_warmup_steps {_STEPS}", percentile=25.0
    ),
    # Looks after 3, 7 and 19 epochs, and lets a third go on.
    "successive_halving": _pruner(
        "SuccessiveHalvingPruner",
        "min_early_stopping_rate bootstrap_count",
        min_resource=2,
        reduction_factor=3,
    ),
    "hyperband": _pruner(
        "HyperbandPruner", "min_resource max_resource reduction_factor bootstrap_count"
    ),
    "threshold": _pruner("ThresholdPruner", "lower upper n_warmup_steps interval_steps"),
    "wilcoxon": _pruner("WilcoxonPruner", "p_threshold n_startup_steps"),
    "patient": _pruner("PatientPruner", "min_delta", wrapped_pruner=_MEDIAN, patience=2),
}

REPLACED = {"optuna.samplers.MOTPESampler": "TPE takes several objectives: use sampler=tpe"}


def is_default(key: str, value: Any) -> bool:
    """Whether a setting may have come with an option whose `_target_` was then replaced."""
    options = [*SAMPLERS.values(), *PRUNERS.values()]
    return any(key in node and node[key] == value for node in options)
