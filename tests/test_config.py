"""Every rule with values that hold and values that do not, and everything under conf/."""

import re
import socket
import subprocess
import sys
from math import inf, nan

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from perceptrail import config
from perceptrail.activations import ACTIVATIONS
from perceptrail.config import RULES, Validate, check_free, check_surroundings, validate
from perceptrail.errors import UserError
from perceptrail.invocation import CONF
from perceptrail.passwords import masked
from perceptrail.schedules import DROPOUT_SCHEDULES

GROUPS = sorted(
    folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "study"
)
OPTIONS = [f"{g}={path.stem}" for g in GROUPS for path in sorted((CONF / g).glob("*.yaml"))]

NO_NUMBERS = [None, "1", "", True, [1], nan, inf, -inf]
SHARES = ([0, 0.0, 0.5, 0.999], [-0.1, 1, 1.0, *NO_NUMBERS], "in [0, 1)")
POSITIVE = ([1e-9, 0.5, 3, 1e9], [0, 0.0, -1, *NO_NUMBERS], "above 0")
NOT_NEGATIVE = ([0, 0.0, 0.5, 3], [-1e-9, -1, *NO_NUMBERS], "at least 0")
FLAGS = ([True, False], [None, 0, 1, "true", "on"], "true or false")
COLUMNS = (
    [["a"], ["a", "b c"]],
    [1, [1], [""], {"a": 1}],
    "a list of columns, such as [width, height]",
)
FILES = (["a.csv", {"_target_": "a.b"}], [None, "", 1, ["a"], {"a": 1}], "a file, or {_target_:")
TEXTS = (["a", "a/b c"], [None, "", 1, True, ["a"]], "a text")


LEFT_OUT = ([], [1, 0.5, None, "x"], "left out")
REPLACED = ("check_val_every_n_epoch", "val_check_interval", "enable_checkpointing", "barebones")
REPLACED += ("model_registry", "use_distributed_sampler", "default_root_dir", "logger", "callbacks")
BATCHES = ([1, 20, 0.1, 1.0], [0, 0.0, 1.5, -1, True, "1", [1]], "a count of batches")


def integers(low, *, high=None):
    """Values for a rule about integers from `low` to `high`."""
    above = [] if high is None else [high + 1]
    good = [low, low + 1, 1000 if high is None else high]
    said = f"integer of at least {low}" if high is None else f"integer from {low} to {high}"
    return good, [low - 1, low + 0.5, float(low), *above, *NO_NUMBERS], said


PARTS = ([0.001, 0.2, 0.999], [0, 0.0, 1, 1.0, -0.2, *NO_NUMBERS], "in (0, 1)")


def names(*good):
    """Values for a rule about names."""
    return list(good), [None, "", good[0].upper(), f"{good[0]} ", 1, [good[0]]], ", ".join(good)


PARTS_OF_NETWORK = (
    [None, [], ["head", "features.0.*"]],
    ["head", 1, True, [1], [None]],
    "a list of names of parts of the network",
)


def or_null(values):
    """The same, and null."""
    good, bad, said = values
    return [None, *good], [v for v in bad if v is not None], f"{said}, or null"


# key -> values that hold, values that do not, and words that the message must say.
VALUES = {
    "seed": integers(0, high=2**32 - 1),
    "figures": FLAGS,
    "trial": (
        [None, {"study": "s", "number": 0, "storage": "x.journal"}],
        [5, "x", [], {}, {"study": "s"}],
        "{study, number, storage}, or null",
    ),
    "objectives": (
        [None, ["val/loss"], ["val/acc", "parameters"]],
        ["val/acc", 1, True, [], [1, 2], {"a": 1}],
        "a list of metrics, as [val/loss,parameters], or null",
    ),
    "monitor.metric": (
        ["train/loss", "val/loss", "val/acc", "val/r2", "val/f1", "val/auroc"],
        [None, "", "VAL/LOSS", "val/acc ", "train/acc", "f1", 1, ["val/loss"]],
        "train/loss, or one of val/loss, val/acc, val/r2",
    ),
    "task.name": names("classification", "regression", "multilabel", "own"),
    "task._target_": TEXTS,
    "task.loss": (
        [None, "mse", "huber", {"_target_": "my.Loss"}],
        ["", "MSE", 1, {"a": 1}],
        "null for the usual one, mse, mae or huber of numbers",
    ),
    "task.class_weights": (
        [None, "balanced", [1, 0.5], [0]],
        ["even", 1, [-1], ["a"]],
        "null, balanced, or a list with a number of at least 0",
    ),
    "metrics": ([[], ["f1", "auroc"], ["accuracy"]], ["f1", ["f2"], None, 1], "a list of some of"),
    "input": or_null(TEXTS),
    "output": or_null(TEXTS),
    "separator": or_null(TEXTS),
    "monitor.mode": names("min", "max"),
    "regularization.label_smoothing": SHARES,
    "regularization.l1": NOT_NEGATIVE,
    "regularization.l2": NOT_NEGATIVE,
    "regularization.adversarial": NOT_NEGATIVE,
    "distillation.teacher": or_null(TEXTS),
    "distillation.weight": ([0, 0.5, 1, 1.0], [-0.1, 1.1, *NO_NUMBERS], "in [0, 1]"),
    "regularization.gradient_clip": or_null(POSITIVE),
    "regularization.max_norm": or_null(POSITIVE),
    "data.dir": TEXTS,
    "data.val_size": (
        [1, 5000, 0.001, 0.2, 0.999],
        [0, -1, 0.0, 1.0, 1.5, -0.2, *NO_NUMBERS],
        "at least 1, or a share of the training set in (0, 1)",
    ),
    "data.train_size": or_null(integers(1)),
    "data.batch_size": integers(1),
    "data.points": integers(8),
    "data.bits": integers(2, high=20),
    "data.noise": NOT_NEGATIVE,
    "data.mirrors": (
        [[], ["/data"], ["https://a.b/c", "/data/mnist"]],
        [None, "/data", 1, [1], [["/data"]]],
        "a list of URLs and folders",
    ),
    "data.test_size": PARTS,
    "data.table": names("breast_cancer", "diabetes", "iris", "wine"),
    "data.path": FILES,
    "data.target": ([*COLUMNS[0], "price"], [None, "", 1, [], [1]], "a column, or a list"),
    "data.features": or_null(COLUMNS),
    "data.categorical": COLUMNS,
    "data.test": ([*FILES[0], 0.2], [*FILES[1], 0.0, 1.0], "a share in (0, 1), or a file"),
    "data.kind": or_null(names("classes", "numbers")),
    "data.separator": or_null(TEXTS),
    "data.name": TEXTS,
    "data.size": or_null(integers(1)),
    "data.mode": names("colour", "grey"),
    "data.download": FLAGS,
    "data.y": or_null(TEXTS),
    "data._target_": TEXTS,
    "data.stream": or_null(FLAGS),
    "data.workers": or_null(integers(0)),
    "data.arms": integers(2),
    "data.turns": POSITIVE,
    "data.factor": POSITIVE,
    "model.hidden": (
        [[], [1], [256, 128], [32] * 8],
        [None, 256, "256", "[256]", [0], [256, -1], [2.5], ["256"], [True], [[8]], [None]],
        "a list of positive integers",
    ),
    "model.activation": names(
        *("identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "softplus"),
        *("gelu", "silu", "mish"),
    ),
    "model.dropout": SHARES,
    "model.input_dropout": SHARES,
    "model.noise": NOT_NEGATIVE,
    "model.input_noise": NOT_NEGATIVE,
    "model.norm": or_null(names("batch", "layer")),
    "model._target_": TEXTS,
    "model.weights": or_null(TEXTS),
    **{f"model.{key}": PARTS_OF_NETWORK for key in ("fresh", "frozen")},
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "schedule.factor": ([0.1, 0.5], [0, 1, 1.5, -1, *NO_NUMBERS], "in (0, 1)"),
    "schedule.patience": integers(0),
    **{f"trainer.{name}": LEFT_OUT for name in REPLACED},
    "trainer.max_steps": ([-1, 1, 100], [0, -2, 1.0, True, "1", None], "-1, or an integer"),
    "trainer.gradient_clip_val": ([None, 0.1, 5], [0, -1, "1", True], "above 0, or null"),
    "trainer.gradient_clip_algorithm": names("norm", "value"),
    "trainer.accumulate_grad_batches": integers(1),
    "trainer.limit_train_batches": ([None, *BATCHES[0]], *BATCHES[1:]),
    "trainer.limit_val_batches": ([None, *BATCHES[0]], *BATCHES[1:]),
    "trainer.overfit_batches": (
        [0, 0.0, *BATCHES[0]],
        [1.5, -1, "1", [1]],
        "0, or a count of batches",
    ),
    "schedule.warmup": SHARES,
    "schedule.final": ([0, 0.5, 1, 1.0], [-0.1, 1.1, *NO_NUMBERS], "in [0, 1]"),
    "dropout.schedule": names("constant", "linear", "cosine", "curriculum", "early", "late"),
    "dropout.start": SHARES,
    "dropout.end": SHARES,
    "dropout.cutoff": SHARES,
    "callbacks.early_stopping.patience": integers(1),
    "callbacks.early_stopping.min_delta": NOT_NEGATIVE,
    "callbacks.averaging.horizon": PARTS,
    "trainer.accelerator": names("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": ([1, 8, "auto", [0], [0, 1]], [0, -1, None, "", "two", 1.5, True], "auto"),
    "trainer.max_epochs": integers(1),
    "trainer.precision": names("32-true", "bf16-mixed"),
    "trainer.matmul_precision": names("highest", "high", "medium"),
    "trainer.cuda_graphs": FLAGS,
    "tracking.uri": (
        [
            *(None, "sqlite:///a.db", "sqlite:////abs/a.db", "http://localhost:5000"),
            *("https://a.b/c", "postgresql://u:p@h/db", "mysql+pymysql://u:p@h/db"),
        ],
        ["", "mlruns", "./mlruns", "file:///mlruns", "ftp://a.b", 1, True],
        "a database (sqlite:///path, postgresql://...) or the address of an MLflow server",
    ),
    "tracking.experiment": or_null(TEXTS),
    "tracking.system_metrics": FLAGS,
    "run": TEXTS,
    "image": or_null(TEXTS),
    "format": names("onnx", "torchscript", "torch_export"),
}


def only(key, value):
    """A configuration that holds nothing else."""
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, key, value)
    return cfg


def test_every_rule_has_its_values_here():
    assert VALUES.keys() == RULES.keys()


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in VALUES for v in VALUES[k][0]], ids=str)
def test_what_holds(key, value):
    validate(only(key, value))


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in VALUES for v in VALUES[k][1]], ids=str)
def test_what_does_not_hold_is_named_with_what_is_allowed(key, value):
    with pytest.raises(UserError) as caught:
        validate(only(key, value))
    said, _, allowed = str(caught.value).partition(": must be ")
    assert said == f"{key}={'null' if value is None else value}"
    assert VALUES[key][2] in allowed
    assert "\n" not in allowed


@pytest.mark.parametrize(
    ("key", "typed", "meant"),
    [
        ("model.activation", "rleu", "relu"),
        ("model.activation", "sigmoit", "sigmoid"),
        ("model.norm", "bach", "batch"),
        ("dropout.schedule", "curiculum", "curriculum"),
        ("monitor.metric", "val/los", "val/loss"),
        ("monitor.metric", "validation/accuracy", None),
        ("monitor.mode", "minimum", "min"),
        ("trainer.accelerator", "gpus", "gpu"),
        ("model.activation", "xyz", None),
    ],
)
def test_the_name_nearest_to_a_misspelt_one_is_offered(key, typed, meant):
    with pytest.raises(UserError) as caught:
        validate(only(key, typed))
    offered = re.findall(r"did you mean '(.*)'\?", str(caught.value))
    assert offered == ([meant] if meant else [])


def test_a_value_that_must_be_given_is_asked_for():
    with pytest.raises(UserError, match=r"^data\.dir is missing: give data\.dir="):
        validate(only("data.dir", "???"))


@pytest.mark.parametrize("text", ["callbacks: {early_stopping: null}", "resume: latest", "{}"])
def test_what_is_not_there_breaks_no_rule(text):
    validate(OmegaConf.create(text))


@pytest.mark.parametrize(("key", "meant"), [("sed", "seed"), ("optimiser", "optimizer")])
def test_a_key_that_looks_like_one_misspelt_is_named_with_the_nearest(key, meant):
    hint = rf" \(did you mean '{meant}'\?\)"
    with pytest.raises(UserError, match=rf"^{key}: there is no such key{hint}; with a plus"):
        validate(OmegaConf.create({"seed": 0, key: 1}))


@pytest.mark.parametrize("own", ["+notes=why", "+sed=1", "++lab.author=me", "+optimiser={a: 1}"])
def test_a_key_with_a_plus_is_the_users_own(own):
    validate(composed("train", own))


def test_a_key_of_ones_own_in_a_preset_passes():
    validate(OmegaConf.create({"seed": 0, "notes": "why"}))


def test_a_value_taken_from_elsewhere_is_judged_as_what_it_is():
    cfg = OmegaConf.create({"dropout": {"end": "${data.share}"}, "data": {"share": 1.5}})
    with pytest.raises(UserError, match=r"^dropout\.end=1\.5: must be a number in \[0, 1\)$"):
        validate(cfg)


@pytest.fixture(autouse=True)
def no_trace():
    """Leaves Hydra's global configuration as it was."""
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def composed(name, *overrides):
    """A whole configuration, as a command has it before it runs."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    cfg.hydra.runtime.cwd = "/somewhere"
    HydraConfig.instance().set_config(cfg)
    return cfg


def given(cfg):
    """A configuration without Hydra's own part, with what the user has to give."""
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    for key in OmegaConf.missing_keys(own):
        OmegaConf.update(own, key, "given")
    return own


def targets(node):
    """The names of all classes and functions that a configuration names."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            yield from targets(value)
        elif key == "_target_" and value is not None:
            yield value


@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_every_command_composes_and_validates(name):
    validate(given(composed(name)))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_validates_and_names_what_there_is(option):
    cfg = given(composed("train", option))
    validate(cfg)
    OmegaConf.resolve(cfg)
    for target in targets(cfg):
        assert target == "given" or callable(get_object(target)), target


def test_every_activation_and_schedule_of_the_rules_is_one_that_exists():
    assert VALUES["model.activation"][0] == list(ACTIVATIONS)
    assert VALUES["dropout.schedule"][0] == list(DROPOUT_SCHEDULES)
    assert [f"dropout={name}" for name in sorted(DROPOUT_SCHEDULES)] == [
        option for option in OPTIONS if option.startswith("dropout=")
    ]


def with_store(uri):
    return OmegaConf.create({"tracking": {"uri": uri}})


def test_surroundings_in_order_pass(tmp_path):
    for uri in (None, f"sqlite:///{tmp_path}/mlflow.db", "postgresql:///db?host=/run/postgresql"):
        check_surroundings(with_store(uri), tmp_path / "outputs" / "new")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_surroundings(with_store(f"http://127.0.0.1:{port}"), tmp_path)
        check_surroundings(with_store(f"postgresql+psycopg://u:p@127.0.0.1:{port}/db"), tmp_path)
    assert not (tmp_path / "outputs").exists()


def test_a_server_that_does_not_answer_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for uri in (f"http://127.0.0.1:{port}", f"postgresql://u@127.0.0.1:{port}/db"):
        with pytest.raises(UserError, match=rf"^tracking\.uri={uri}: no server .*tracking=none"):
            check_surroundings(with_store(uri), tmp_path)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:99999", "https://127.0.0.1:port"])
def test_an_address_that_cannot_be_is_named(tmp_path, uri):
    with pytest.raises(UserError, match=rf"^tracking\.uri={uri}: no server answers"):
        check_surroundings(with_store(uri), tmp_path)


def test_a_database_in_no_folder_is_named(tmp_path):
    uri = f"sqlite:///{tmp_path}/absent/mlflow.db"
    with pytest.raises(UserError, match=rf"^tracking\.uri={uri}: .*{tmp_path}/absent$"):
        check_surroundings(with_store(uri), tmp_path)


def test_a_run_directory_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*/file/run: .*/file is a file"):
        check_surroundings(with_store(None), tmp_path / "file" / "run")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "FREE_BYTES", 2**80)
    with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*MiB free on that disk; a run needs"):
        check_surroundings(with_store(None), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.dropout=1"], "model.dropout=1: must be"),
        (["seed=${nothing}"], "nothing"),
        (["hydra.run.dir=/dev/null/run"], "hydra.run.dir=/dev/null/run: /dev/null is a file"),
    ],
)
def test_the_hook_ends_a_command_with_the_message_alone(overrides, said):
    cfg = composed("train", "tracking=none", *overrides)
    with pytest.raises(SystemExit) as caught:
        Validate().on_run_start(cfg)
    assert isinstance(caught.value.code, str)
    assert said in caught.value.code


def test_the_hook_lets_a_good_configuration_pass(tmp_path):
    Validate().on_run_start(composed("train", "tracking=none", f"hydra.run.dir={tmp_path}/run"))
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_same_settings_is_known_although_it_stores_no_password(tmp_path):
    given = (
        f"hydra.run.dir={tmp_path}",
        "tracking=none",
        "+logger.own.uri=postgresql://me:secret@h/s",
    )
    cfg = composed("train", *given)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "run.json").write_text("{}")
    stored = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]))
    (tmp_path / ".hydra/config.yaml").write_text(masked(stored))
    check_free(cfg, tmp_path)
    with pytest.raises(UserError, match=r"with seed=0 instead of 1; resume=.* goes on with it"):
        check_free(composed("train", *given, "seed=1"), tmp_path)


def test_validation_needs_nothing_heavy():
    script = (
        "import sys; from perceptrail import config; from omegaconf import OmegaConf;"
        "config.validate(OmegaConf.create({'model': {'activation': 'relu'}}));"
        "print(*{'torch', 'pytorch_lightning', 'mlflow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
