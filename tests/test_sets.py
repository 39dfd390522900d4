"""Data sets: their parts, their digests, and the keys of their configs."""

import hashlib
import inspect
import subprocess
import sys
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn import datasets
from sklearn.datasets import load_digits

from perceptrail.data import sets
from perceptrail.data.dataset import as_float, split
from perceptrail.data.idx import NAMES, read, write
from perceptrail.errors import UserError
from perceptrail.invocation import CONF

DATA = CONF / "data"

DRAWN = {
    "xor": partial(sets.xor, points=200, bits=2, noise=0.1),
    "parity": partial(sets.xor, points=200, bits=4, noise=0.1),
    "circles": partial(sets.circles, points=200, noise=0.1, factor=0.5),
    "moons": partial(sets.moons, points=200, noise=0.1),
    "spirals": partial(sets.spirals, points=200, noise=0.1, arms=3, turns=1.5),
}


@pytest.fixture
def own(tmp_path):
    """A folder with a small set of one's own: 12 + 4 images of 5x3, three classes."""
    rng = np.random.default_rng(0)
    for images, labels, n in ((NAMES[0], NAMES[1], 12), (NAMES[2], f"{NAMES[3]}.gz", 4)):
        write(tmp_path / images, rng.integers(0, 256, (n, 5, 3), dtype=np.uint8))
        write(tmp_path / labels, (np.arange(n) % 3).astype(np.uint8))
    return tmp_path


def test_mnist_holds_the_bytes_of_its_files(mnist_dir):
    data = sets.mnist(dir=mnist_dir)
    assert (data.name, data.shape, data.classes) == ("mnist", (28, 28), tuple("0123456789"))
    for part, images, labels in ((data.train, *NAMES[:2]), (data.test, *NAMES[2:])):
        x, y = part()
        assert (x.dtype, y.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(x, read(mnist_dir / images).reshape(len(y), 784))
        np.testing.assert_array_equal(y, read(mnist_dir / labels))
        assert (as_float(x).min(), as_float(x).max()) == (0, 1)


def test_the_same_files_have_the_same_digest_under_any_name(mnist_dir):
    data, same = sets.mnist(dir=mnist_dir), sets.idx(dir=mnist_dir, name="mine")
    assert (same.name, same.shape, same.classes) == ("mine", data.shape, data.classes)
    assert same.digest == data.digest
    assert len(data.digest) == 64


def test_own_files_tell_shape_and_classes(own):
    data = sets.idx(dir=own)
    x, y = data.train()
    assert (data.shape, data.classes) == ((5, 3), ("0", "1", "2"))
    np.testing.assert_allclose(as_float(x), read(own / NAMES[0]).reshape(12, 15) / 255, rtol=1e-6)
    assert y.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("name", [*NAMES[:3], f"{NAMES[3]}.gz"])
def test_every_file_of_one_s_own_counts_in_the_digest(own, name):
    before = sets.idx(dir=own).digest
    array = read(own / name).copy()
    array.flat[-1] ^= 1
    write(own / name, array)
    assert sets.idx(dir=own).digest != before


def test_the_test_part_is_not_read_before_it_is_asked_for(own):
    data = sets.idx(dir=own)
    (own / NAMES[2]).unlink()
    assert len(data.train()[1]) == 12
    with pytest.raises(FileNotFoundError):
        data.test()


def test_a_missing_file_is_named(own):
    (own / NAMES[1]).unlink()
    with pytest.raises(UserError, match=f"no {NAMES[1]} there"):
        sets.idx(dir=own)


def test_images_and_labels_must_go_together(own):
    write(own / NAMES[1], np.zeros(11, np.uint8))
    with pytest.raises(UserError, match=r"shape \(12, 5, 3\).*\(11,\)"):
        sets.idx(dir=own).train()


def test_digits_are_scikit_learn_s_split_by_class():
    data = sets.digits(test_size=0.25)
    images, labels = load_digits(return_X_y=True)
    (x, y), (x_test, y_test) = data.train(), data.test()
    assert len(y_test) == round(0.25 * len(labels))
    rows = sorted(map(tuple, np.rint(np.concatenate([x, x_test]) * 16)))
    assert rows == sorted(map(tuple, images))
    shares = np.bincount(y_test) - 0.25 * np.bincount(labels)
    assert np.abs(shares).max() <= 1
    assert np.bincount(y).sum() + len(y_test) == len(labels)


@pytest.mark.parametrize("table", sets.TABLES)
def test_tables_are_scikit_learn_s_standardised_by_the_training_part(table):
    data = sets.tabular(table=table, test_size=0.25)
    raw = getattr(datasets, f"load_{table}")()
    (x, y), (x_test, y_test) = data.train(), data.test()
    assert len(y_test) == round(0.25 * len(raw.target))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-5)
    # Back in its own units every row is one of the table's, with the class that the table says.
    true = raw.target > np.median(raw.target) if table == "diabetes" else raw.target
    scaled = (raw.data - raw.data.mean(0)) / raw.data.std(0)
    both, labels = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    both = (both - both.mean(0)) / both.std(0)
    for one, other in zip(_sorted(both, labels), _sorted(scaled, true), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert len(data.classes) == len(np.unique(true))
    shares = np.bincount(y_test) - 0.25 * np.bincount(true)
    assert np.abs(shares).max() <= 1


def _sorted(x, y):
    order = np.lexsort(np.round(np.column_stack([y, x]), 3).T)
    return x[order], y[order]


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_drawn_sets_follow_the_seed(make):
    data, same, other = make(seed=1), make(seed=1), make(seed=2)
    (x, y), (x_test, y_test) = data.train(), data.test()
    np.testing.assert_array_equal(x, same.train()[0])
    np.testing.assert_array_equal(x_test, same.test()[0])
    assert data.digest == same.digest != other.digest
    content = b"".join(array.tobytes() for array in (x, y, x_test, y_test))
    assert data.digest == hashlib.sha256(content).hexdigest()
    assert x.shape == x_test.shape == (200, *data.shape)
    assert np.unique(y).tolist() == list(range(len(data.classes)))


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_train_and_test_parts_are_independent(make):
    drawn = [make(seed=seed) for seed in range(20)]
    x = np.array([[data.train()[0].ravel(), data.test()[0].ravel()] for data in drawn])
    x -= x.mean(axis=0)  # the classes take turns, and have centres of their own
    assert abs(np.corrcoef(x[:, 0].ravel(), x[:, 1].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("held_out", [1, 7, 40, 99])
def test_a_split_keeps_every_stratum_in_proportion(held_out):
    strata = np.random.default_rng(0).choice(4, 100, p=[0.1, 0.2, 0.3, 0.4])
    rest, held = split(strata, held_out=held_out, seed=0)
    assert sorted([*rest, *held]) == list(range(100))
    assert len(held) == held_out
    shares = np.bincount(strata[held], minlength=4) - np.bincount(strata) * held_out / 100
    assert np.abs(shares).max() <= 1


def test_a_split_follows_its_seed_and_picks_all_alike():
    one, same, other = (split(np.zeros(50, int), held_out=10, seed=s)[1] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()
    picks = np.bincount(
        np.concatenate([split(np.zeros(50, int), held_out=10, seed=s)[1] for s in range(1000)])
    )
    # Binomial: 200 each, standard deviation 12.6.
    assert np.abs(picks - 200).max() < 5 * 12.6


def test_every_corner_of_xor_keeps_its_share_in_a_split():
    data = sets.xor(points=1000, bits=2, noise=0.1, seed=5)
    x, y = data.train()
    for part in split(data.strata(x, y), held_out=200, seed=3):
        assert len(set(np.bincount((x[part] > 0) @ [1, 2]))) == 1


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_holds_the_keys_of_its_function(path):
    cfg = OmegaConf.to_container(OmegaConf.load(path))
    first, *keys = cfg
    assert first == "_target_"
    own = set(keys) - {"batch_size", "val_size", "train_size", "augment"}
    assert len(keys) == len(own) + 4
    if cfg["_target_"] == "???":
        assert own == {"stream", "workers"}
    else:
        module, _, name = cfg["_target_"].rpartition(".")
        assert name == path.stem
        assert own == set(inspect.signature(getattr(import_module(module), name)).parameters)
    lines = path.read_text().splitlines()
    uncommented = [line.split(":")[0] for line in lines if "#" not in line]
    assert set(uncommented) <= {"_target_", "seed"}


def test_importing_the_sets_imports_nothing_heavy():
    heavy = "{'torch', 'sklearn', 'pytorch_lightning', 'mlflow'}"
    code = f"import sys; from perceptrail.data import sets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
