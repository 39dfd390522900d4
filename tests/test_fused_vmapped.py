"""Stacks of modules and losses of one's own, against the same trained one by one."""

import re

import pytest
import torch
from launching import assert_alike, launch
from torch import nn

from perceptrail.fused.vmapped import Vmapped
from perceptrail.network import Module

DIGITS = ("data=digits", "data.train_size=203", "data.val_size=100", "trainer.max_epochs=3")
SPIRALS = ("data=spirals", "data.points=150", "trainer.max_epochs=3", "model.dropout=0")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


def of(name):
    return (*DIGITS, "model=module", f"model._target_=users_modules.{name}")


def stacked(jobs, folder, capfd):
    """Have the jobs run both ways, none of them alone, and compare all that they leave."""
    assert_alike(jobs, folder)
    assert "Alone" not in capfd.readouterr().out


def test_norms_shared_weights_and_unused_parts(tmp_path, capfd):
    # Adam scales up the gradient of a bias before batch norm, which is rounding error.
    eps = {name: ["+optimizer.eps=1e-3"] for name in ("adam", "adamw", "rmsprop")}
    every = [
        [*of("Rich"), f"optimizer={name}", "optimizer.weight_decay=0.01", *eps.get(name, ())]
        for name in OPTIMIZERS
    ]
    alike = [[*job, f"seed={seed}"] for job in every for seed in (1, 2)]
    stacked(alike, tmp_path / "alike", capfd)
    each = [[*job, f"seed={k}", f"optimizer.lr=0.00{k}"] for job in every for k in (1, 2)]
    stacked(each, tmp_path / "each", capfd)


def test_penalties_and_bounds_of_weights_of_any_shape(tmp_path, capfd):
    settings = {"l1": 1e-3, "l2": 1e-2, "gradient_clip": 0.5, "max_norm": 0.3}
    net = (*of("Net"), "+model.rate=0")
    jobs = [[*net, f"regularization.{key}={value}"] for key, value in settings.items()]
    stacked([*jobs, [*net, "seed=1"]], tmp_path, capfd)


def test_frozen_and_given_parts(tmp_path, capfd):
    (given,) = launch("basic", [[*of("Rich"), "seed=7"]], tmp_path / "given")
    assert given.return_value
    own = (*of("Rich"), f"model.weights={tmp_path}/given/0", "model.fresh=[head]", "optimizer=sgd")
    jobs = [[*own, "model.frozen=[conv]", f"seed={k}", "regularization.l2=0.1"] for k in (1, 2)]
    stacked(jobs, tmp_path / "jobs", capfd)


def test_weights_given_to_the_usual_network(tmp_path, capfd):
    launch("basic", [[*SPIRALS, "seed=7"]], tmp_path / "given")
    own = (*SPIRALS, f"model.weights={tmp_path}/given/0", "model.fresh=[layers.1]")
    stacked([[*own, f"seed={k}"] for k in (1, 2)], tmp_path / "jobs", capfd)


@pytest.mark.parametrize(
    "task",
    [
        (*DIGITS, "task.loss={_target_: users_modules.Focal}"),
        (*SPIRALS, "task.loss={_target_: torch.nn.CrossEntropyLoss, label_smoothing: 0.1}"),
        (
            *("data=tabular", "data.table=diabetes", "task=regression", "trainer.max_epochs=3"),
            *("task.loss={_target_: torch.nn.HuberLoss, delta: 0.5}",),
        ),
    ],
    ids=["classes", "two classes", "numbers"],
)
def test_losses_of_ones_own(task, tmp_path, capfd):
    jobs = [[*task, "model.hidden=[8]", "model.dropout=0", f"seed={k}"] for k in (1, 2)]
    stacked(jobs, tmp_path, capfd)


def ones(rates, dims):
    """Networks that give back what dropout makes of ones, at their rates."""
    made = []
    for rate in rates:
        node = {"_target_": f"torch.nn.Dropout{dims}", "p": rate}
        module = Module(node, shape=[8, 20, 20], mean=0.0, std=1.0)
        layer = module.body
        module.body = nn.Sequential(layer, nn.Flatten())
        module.body.register_parameter("scale", nn.Parameter(torch.ones(())))
        module.dropouts = [layer]
        made.append(module)
    return made


@pytest.mark.parametrize("dims", ["", "2d"])
def test_dropout_of_each_member(dims):
    """The share that is zeroed, whole channels or not, and the scale of the rest."""
    rates, n = [0.0, 0.25, 0.5], 400
    stack = Vmapped(ones([0.1, 0.1, 0.1], dims), device=torch.device("cpu"))
    stack.set_dropout(torch.tensor(rates))
    torch.manual_seed(0)
    with torch.no_grad():
        y = stack._forward(torch.ones(3, n, 8 * 400), training=True).view(3, n, 8, 400)
    assert (stack(torch.ones(3, n, 8 * 400)) == 1).all()
    kept = (y != 0).double()
    if dims:
        assert (kept.mean(-1) % 1 == 0).all()
    # Five standard deviations of a share of 3,200 draws, or of 1,280,000.
    bound = 5 * 0.5 / (3200 if dims else 3200 * 400) ** 0.5
    for rate, own, values in zip(rates, kept, y, strict=True):
        assert own.mean().item() == pytest.approx(1 - rate, abs=bound if rate else 0)
        assert values.max().item() == pytest.approx(1 / (1 - rate))
    assert not torch.equal(kept[1], kept[2])


def test_members_of_several_rates_are_one_stack(tmp_path, capfd, monkeypatch):
    sizes = []
    init = Vmapped.__init__
    monkeypatch.setattr(
        "perceptrail.fused.group.Vmapped.__init__",
        lambda self, networks, **own: sizes.append(len(networks)) or init(self, networks, **own),
    )
    rates = (0.0, 0.15, 0.4)
    jobs = [[*of("Plain"), f"+model.dropout={p}", "dropout.schedule=linear"] for p in rates]
    done = launch("fused", jobs, tmp_path, processes=1)
    assert len({job.return_value for job in done}) == 3
    assert sizes[-1] == 3
    assert "Alone" not in capfd.readouterr().out


WHY = {
    "Recurrent": "torch.vmap cannot have it (RuntimeError: Batching rule not implemented for",
    "Peeking": "torch.vmap cannot have it (RuntimeError: vmap: It looks like you're calling .item",
    "Hidden": "what it answers does not follow from inputs, parameters and buffers alone",
    "Replacing": "torch.vmap cannot have it (TypeError: another tensor is put in the place of",
    "Hooked": "a hook on it would be told of all members at once",
    "Alpha": "torch.vmap cannot have it (TypeError: AlphaDropout: its rate cannot be each member's",
    "Wide": "large enough to be as fast alone (78 MFLOP a batch)",
}


def test_what_cannot_be_stacked_is_trained_alone_and_the_log_says_why(tmp_path, capfd):
    own = {"Alpha": ["+model.dropout=0.1"]}
    jobs = [[*of(name), f"seed={k}", *own.get(name, ())] for name in WHY for k in (0, 1)]
    jobs += [
        [*DIGITS, "model.hidden=[4]", f"task.loss={{_target_: users_modules.{name}}}"]
        for name in ("Margin", "Rounded", "Hinge")
    ]
    done = launch("fused", jobs, tmp_path)
    assert all(job.return_value > 0 for job in done)
    said = [line for line in capfd.readouterr().out.splitlines() if "Alone" in line]
    found = {}
    for line in said:
        reason, numbers = re.search(r"because of (.*): (#.*)", line).groups()
        found[reason] = numbers.split()
    expected = {f"model._target_=users_modules.{name}: {why}": 2 for name, why in WHY.items()}
    expected["task.loss._target_=users_modules.Margin: it has parameters of its own"] = 1
    expected["task.loss._target_=users_modules.Rounded: torch.vmap cannot have it (RuntimeErr"] = 1
    expected["task.loss._target_=users_modules.Hinge: torch.vmap cannot have it (UserWarning"] = 1
    for reason, count in expected.items():
        ((_, numbers),) = [own for own in found.items() if own[0].startswith(reason)]
        # Of those with numbers of their own, the first could be.
        assert len(numbers) == (1 if "Hidden" in reason else count), reason
