"""The running trial as an application sees it: light to import, and inert outside a search.

Everything comes out of the study's storage, so a trial may run in any process on any machine that
reaches it.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from perceptrail.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

PLACE = ("study", "storage", "number")
REPEATED = "repeated"  # the attribute of a study each of whose trials is several runs


def trial(cfg: DictConfig | None = None) -> "RunningTrial":
    """The trial that this Hydra job runs; outside a search, one that does nothing.

    It is found by what Hydra knows of the job; `cfg.trial` {study, storage, number}, where an
    application has such a key, says it too.
    """
    own = OmegaConf.select(cfg, "trial") if cfg is not None else None
    if isinstance(own, DictConfig) and set(PLACE) <= set(own):
        return RunningTrial({key: own[key] for key in PLACE})
    if not HydraConfig.initialized():
        return RunningTrial(None)
    hydra: Any = HydraConfig.get()
    study, storage = (
        OmegaConf.select(hydra, f"sweeper.{key}") for key in ("study_name", "storage")
    )
    if OmegaConf.is_missing(hydra.job, "num") or not (study and storage):
        return RunningTrial(None)
    runs = OmegaConf.select(hydra, "sweeper.repeats.values") or [None]  # each trial has
    return RunningTrial({"study": study, "storage": storage, "number": hydra.job.num // len(runs)})


class RunningTrial:
    """A trial while it runs; without a `place` {study, storage, number} it does nothing.

    `number` is its number in the study, and the name of its directory; None outside a search.
    """

    def __init__(self, place: Mapping[str, Any] | None) -> None:
        self._place = place
        self.number = None if place is None else int(place["number"])

    def report(self, value: float, step: int) -> None:
        """Report the objective as it is after a step; the first report of a step counts.

        Raises `optuna.TrialPruned`, which is to reach Hydra, if the trial is not worth going on.
        """
        if self.judge(value, step):
            from optuna import TrialPruned

            raise TrialPruned(f"pruned after step {step}")

    def judge(self, value: float, step: int) -> bool:
        """Report as `report` does; whether the trial is not worth going on.

        Never true of a search with several objectives or with several runs a trial, which are not
        pruned by their steps.
        """
        if self._place is None or not self._is_prunable:
            return False
        known = self._trial.storage.get_trial(self._trial._trial_id).intermediate_values
        if step not in known:  # what is resumed repeats the step that it was killed in
            self._trial.report(value, step)
        return bool(self._trial.should_prune())

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a fact about the trial in the study; numbers become columns of trials.csv.

        Raises `UserError` for a name by which the search keeps facts of its own.
        """
        if self._place is not None:
            from perceptrail.search.roll import BOOKKEEPING  # with Optuna, which a search has there

            if key in BOOKKEEPING:
                raise UserError(
                    f"set_user_attr({key!r}): must be none of {', '.join(BOOKKEEPING)}, which the "
                    "search keeps itself"
                )
            self._trial.set_user_attr(key, value)

    @cached_property
    def _is_prunable(self) -> bool:
        study = self._trial.study
        return len(study.directions) == 1 and not study.user_attrs.get(REPEATED)

    @cached_property
    def _trial(self) -> "Trial":
        import optuna
        from optuna.pruners import BasePruner
        from optuna.samplers import RandomSampler

        from perceptrail.search.storage import PRUNER, build, open_storage

        assert self._place is not None
        storage = open_storage(self._place["storage"])
        # The parameters are drawn already; the sampler only has to be cheap.
        study = optuna.load_study(
            study_name=self._place["study"], storage=storage, sampler=RandomSampler()
        )
        study.pruner = build(BasePruner, study.user_attrs[PRUNER])
        number = self._place["number"]
        trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        return optuna.Trial(study, trial_id)
