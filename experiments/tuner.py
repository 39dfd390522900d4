"""Does a search find a better network than sensible defaults?

Depth, widths, activation, dropout, normalisation, batch size, optimizer and learning rate together
span more combinations than anyone could try. A search proposes, trains, learns from what came out,
and gives up early on trials that fall behind. Its winner was the best of many on one split of the
data, and so is partly lucky: it is trained again with other seeds, beside the default.
"""

from perceptrail.studies import ROOT, Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

import csv
import subprocess
import sys

import optuna

from perceptrail import charts


def main(study: Study) -> None:
    """Search, draw how it went and what mattered, and train the winner again beside the default."""
    cfg, folder = study.cfg, study.runs / "search"
    same = (f"data.train_size={cfg.train_size}", f"trainer.max_epochs={cfg.epochs}")
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", f"hparams_search={cfg.search}"),
        *(f"hydra.sweep.dir={folder}", f"hydra.sweeper.n_trials={cfg.n_trials}"),
        *("hydra.sweeper.figures=false", "figures=false", "callbacks.progress=null"),
        *("tracking=none", *same),
    ]
    print(f"{study.name}: search, {cfg.n_trials} trials", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (folder / "trials.csv").open() as file:
        for row in csv.DictReader(file):
            study.note("search", **{k: v for k, v in row.items() if v and k != "seconds"})
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    found = optuna.load_study(
        study_name=cfg.search, storage=optuna.storages.JournalStorage(backend)
    )
    complete = found.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    values = {trial.number: trial.values[0] for trial in complete}
    numbers = sorted(values)
    best = [min(values[n] for n in numbers[: i + 1]) for i in range(len(numbers))]
    history = {
        "best so far": (numbers, [[value] for value in best]),
        "trial": (numbers, [[values[n]] for n in numbers]),
    }
    study.figure(
        "history",
        charts.lines({"": history}, title="The search", x="trial", y="validation loss (nats)"),
        f"{len(numbers)} of {cfg.n_trials} trials were trained to the end, the others pruned.",
    )
    study.metric("trials", len(found.trials))
    study.metric("pruned", len(found.get_trials(states=[optuna.trial.TrialState.PRUNED])))
    importance = optuna.importance.get_param_importances(
        found, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    for name, value in importance.items():
        study.metric(f"importance/{name}".replace("[", ".").replace("]", ""), value)
    study.figure(
        "importance",
        charts.dots(
            {"": {name: [value] for name, value in importance.items()}},
            title="What mattered in the search",
            x="share of the variance explained (fANOVA)",
        ),
        "How much of the differences between trials goes with each parameter.",
    )

    overrides = found.best_trial.user_attrs["overrides"]
    ours = [o for o in overrides if not o.startswith(("hparams_search", "seed", "callbacks"))]
    done = study.train("winner", variants={"default": same, "winner": [*ours, *same]})
    accuracy = of(done, "best/val/acc")
    study.figure(
        "winner",
        charts.dots(
            {"": accuracy},
            title=f"The winner against the default, {cfg.seeds} seeds",
            x="validation accuracy (%)",
            percent=True,
        ),
        f"Trained on {cfg.train_size:,} digits for {cfg.epochs} epochs. The winner: "
        + ", ".join(o for o in ours if o.partition("=")[0].lstrip("+") in found.best_params)
        + ".",
    )
    for variant, of_seeds in accuracy.items():
        study.metric(f"val/acc/{variant}", of_seeds)
    gain = study.metric(
        "gain", [w - d for w, d in zip(accuracy["winner"], accuracy["default"], strict=True)]
    )
    wins = sum(w > d for w, d in zip(accuracy["winner"], accuracy["default"], strict=True))
    study.claim(
        "Experimentation finds a better architecture",
        verdict(wins == cfg.seeds, partly=gain > 0),
        f"{percent(accuracy['winner'])} against {percent(accuracy['default'])}; better with {wins} "
        f"of {cfg.seeds} seeds",
    )


if __name__ == "__main__":
    execute(main)
