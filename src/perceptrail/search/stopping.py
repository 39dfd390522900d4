"""What ends a search before it has all its trials: its time, a plateau, a callback that asks."""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from optuna import Study
from optuna.trial import FrozenTrial

from perceptrail.errors import UserError
from perceptrail.search.constraints import imported
from perceptrail.search.ledger import stoppable
from perceptrail.search.results import Standing
from perceptrail.search.settings import Settings

Callback = Callable[[Study, FrozenTrial], None]
KEY = "hydra.sweeper.callbacks"


class Stopping:
    """Tells whether to begin no further trial; those that run are waited for."""

    def __init__(self, settings: Settings) -> None:
        self._timeout, self._patience = settings.timeout, settings.patience
        self._callbacks = [_callback(given) for given in settings.callbacks]
        self._begun = monotonic()
        self.reason = ""  # why the search ends, once it does

    def now(self) -> bool:
        """Whether it is time."""
        if self._timeout is not None and monotonic() - self._begun >= self._timeout:
            self.reason = f"{self._timeout:g} seconds are over (hydra.sweeper.timeout)"
        return bool(self.reason)

    def look(self, standing: Standing) -> None:
        """Notice a plateau."""
        if self._patience is not None and standing.best and standing.since >= self._patience:
            self.reason = f"no better one in {standing.since} trials (hydra.sweeper.patience)"

    def tell(self, study: Study, number: int) -> None:
        """Call the callbacks about a trial that has ended."""
        if not self._callbacks:
            return
        trial = study.get_trials(deepcopy=False)[number]
        with stoppable(study):
            for callback in self._callbacks:
                callback(study, trial)
                if study._stop_flag:
                    name = getattr(callback, "__name__", type(callback).__name__)
                    self.reason = f"{name} has stopped the study ({KEY})"


def _callback(given: Any) -> Callback:
    if isinstance(given, str):
        return imported(KEY, given)
    if not isinstance(given, Mapping):
        raise UserError(f"{KEY}: {given} is neither a function's full name nor a _target_")
    try:
        made: Callback = instantiate(dict(given), _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{KEY}: {str(error).splitlines()[0]}") from error
    return made
