"""Why does XOR need a hidden layer?

A perceptron answers by which side of one straight line a point lies on. XOR's four corners cannot
be parted by one line: whatever the line, at least one corner in four is on the wrong side. A hidden
layer draws several lines and combines them. How many units does that take, and does training find
the solution every time? Parity, of which XOR is the case of two bits, asks the same for more
inputs.
"""

from perceptrail.studies import Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from statistics import mean

from perceptrail import charts

LEARNED = 0.99  # of the validation points


def main(study: Study) -> None:
    """Train XOR with hidden layers of growing width, then parity of more bits."""
    cfg = study.cfg
    hidden = {width: [f"model.hidden={[width] if width else []}"] for width in cfg.widths}
    epochs = f"trainer.max_epochs={cfg.epochs}"
    accuracy = of(study.train("width", "experiment=xor", epochs, variants=hidden), "best/val/acc")
    rate = {width: share(values) for width, values in accuracy.items()}
    names = {0: "no hidden layer", 1: "1 unit"} | {w: f"{w} units" for w in cfg.widths if w > 1}
    study.figure(
        "width",
        charts.dots(
            {"": {names[width]: values for width, values in accuracy.items()}},
            title=f"XOR by width of the hidden layer, {cfg.seeds} seeds",
            x="validation accuracy (%)",
            percent=True,
        ),
        "Each dot is a training from another seed. Without a hidden layer none gets past three "
        "corners of four.",
    )
    for width, values in accuracy.items():
        study.metric(f"accuracy/{names[width]}", values)
        study.metric(f"learned/{names[width]}", rate[width])
    perceptron = max(accuracy[0])
    study.claim(
        "A single neuron cannot learn XOR",
        verdict(perceptron < 0.8),
        f"the best of {cfg.seeds} perceptrons reached {perceptron:.1%}",
    )
    widest = max(cfg.widths)
    study.claim(
        "A hidden layer solves XOR",
        verdict(rate[widest] == 1, partly=rate[widest] >= 0.5),
        f"{rate[widest]:.0%} of the trainings with {widest} units learned it, "
        + ", ".join(f"{rate[w]:.0%} with {w}" for w in cfg.widths if 0 < w < widest),
    )

    parity = {
        (bits, width): [f"data.bits={bits}", f"model.hidden=[{width}]"]
        for bits in cfg.bits
        for width in cfg.parity_widths
    }
    done = study.train(
        "parity", "experiment=xor", epochs, variants=parity, seeds=range(cfg.parity_seeds)
    )
    by = of(done, "best/val/acc")
    series = {
        f"{bits} bits": (cfg.parity_widths, [by[bits, width] for width in cfg.parity_widths])
        for bits in cfg.bits
    }
    study.figure(
        "parity",
        charts.lines(
            {"": series},
            title="Parity of more bits takes wider layers",
            x="units in the hidden layer",
            y="validation accuracy (%)",
            log_x=True,
            percent=True,
        ),
        f"Mean ± sd of {cfg.parity_seeds} seeds after {cfg.epochs} epochs.",
    )
    most = max(cfg.bits)
    need = [
        next((w for w in cfg.parity_widths if mean(by[bits, w]) >= LEARNED), float("inf"))
        for bits in cfg.bits
    ]
    study.claim(
        "More complex patterns need more units",
        verdict(need[-1] > need[0]),
        f"parity of {most} bits: {percent(by[most, cfg.parity_widths[0]])} with "
        f"{cfg.parity_widths[0]} units, {percent(by[most, cfg.parity_widths[-1]])} with "
        f"{cfg.parity_widths[-1]}",
    )


def share(values: list[float]) -> float:
    """The share of trainings that learned it."""
    return sum(value >= LEARNED for value in values) / len(values)


if __name__ == "__main__":
    execute(main)
