"""Data of one's own: arrays, folders of images, torchvision's sets and functions, read back."""

import struct

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from running import run
from safetensors.numpy import save_file
from torch.utils.data import TensorDataset

from perceptrail.build import dataset
from perceptrail.config import validate
from perceptrail.data.arrays import arrays, of_parts, of_result
from perceptrail.data.images import folder, read_image, torchvision
from perceptrail.errors import UserError
from perceptrail.network import load
from perceptrail.prediction import judge

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 4)).astype(np.float32), RNG.integers(0, 3, 50)
COLOUR = RNG.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)


def save(path, x, y):
    if path.suffix == ".npz":
        np.savez(path, x=x, y=y)
    elif path.suffix == ".safetensors":
        save_file({"x": x, "y": y}, path)
    else:
        np.save(path, x)
        np.save(path.with_name("y.npy"), y)
        return {"path": str(path), "y": str(path.with_name("y.npy"))}
    return {"path": str(path)}


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.npy"])
def test_arrays_come_back_from_every_format(tmp_path, name):
    data = arrays(**save(tmp_path / name, X, Y), test=0.2)
    (x, y), (x_test, y_test) = data.train(), data.test()
    assert (len(y), len(y_test), data.shape, data.classes) == (40, 10, (4,), ("0", "1", "2"))
    assert data.by_column
    rows = {tuple(row): label for row, label in zip(X.tolist(), Y, strict=True)}
    found = zip([*x.tolist(), *x_test.tolist()], [*y, *y_test], strict=True)
    assert {tuple(row): label for row, label in found} == rows


def test_a_test_part_may_be_in_the_file_or_in_another(tmp_path):
    np.savez(tmp_path / "both.npz", x=X[:40], y=Y[:40], x_test=X[40:], y_test=Y[40:])
    save(tmp_path / "one.npz", X[:40], Y[:40])
    other = save(tmp_path / "two.npz", X[40:], Y[40:])["path"]
    both = arrays(path=str(tmp_path / "both.npz"))
    apart = arrays(path=str(tmp_path / "one.npz"), test=other)
    assert both.digest == apart.digest
    assert np.array_equal(both.test()[0], X[40:])


def test_an_npy_stays_in_its_file_where_the_test_part_has_one_too(tmp_path):
    other = save(tmp_path / "test.npz", X, Y)["path"]
    x, _ = arrays(**save(tmp_path / "x.npy", X, Y), test=other).train()
    assert isinstance(x, np.memmap)
    assert x._mmap is not None
    assert np.array_equal(x, X)


@pytest.mark.parametrize(
    ("x", "shape"),
    [(COLOUR, (3, 6, 5)), (COLOUR[..., 0], (6, 5)), (COLOUR[..., :1], (6, 5))],
    ids=["colour", "grey", "one channel"],
)
def test_images_stay_bytes_with_their_channels_first(x, shape):
    data = of_parts([x, Y, x, Y], name="a", source="b", said="c")
    rows, _ = data.train()
    assert (rows.dtype, data.shape, data.by_column) == (np.uint8, shape, False)
    first = x[0].transpose(2, 0, 1) if len(shape) == 3 else x[0].reshape(shape)
    assert np.array_equal(rows[0].reshape(shape), first)


BAD = X.copy()
BAD[7, 2] = np.nan


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([BAD, Y], "here: x must be finite; example 7 holds NaN or infinity"),
        ([X, Y[:9]], "here: x must be [n, ...] and y [n]; they are (50, 4) and (9,)"),
        ([X, Y, X], "here: must be x and y, and maybe the test part's; not 3"),
        ([X, Y, X[:, :2], Y], "here: x is (50, 4), that of the test part (50, 2)"),
        ([X, Y, X, Y + 1], "here: y: 3 only in the test part"),
        ([X, np.where(Y, np.inf, 0.5)], "here: y: must be finite"),
        ([X.astype(str), Y], "here: x must hold numbers, not <U"),
    ],
)
def test_what_arrays_cannot_be_is_said_in_a_line(parts, said):
    with pytest.raises(UserError) as caught:
        of_parts(parts, name="a", source="b", said="here")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "made",
    [
        (X, Y),
        (torch.from_numpy(X), torch.from_numpy(Y)),
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    ],
    ids=["arrays", "tensors", "a torch Dataset"],
)
def test_a_function_may_return_arrays_or_a_torch_dataset(made):
    data = of_result(made, target="my.make")
    assert data.digest == of_parts([X, Y], name="a", source="b", said="c").digest
    assert (data.name, len(data.test()[1])) == ("make", 10)


def test_a_function_that_returns_something_else_is_named():
    with pytest.raises(UserError, match=r"data\._target_=my\.make: must return arrays .* not dict"):
        of_result({"x": X}, target="my.make")


def test_a_function_of_ones_own_may_mean_what_it_likes_by_its_keys():
    node = {"_target_": "my.make", "points": "many", "val_size": 0.2}
    validate(OmegaConf.create({"data": node}))
    with pytest.raises(UserError, match=r"data\.points=many"):
        validate(OmegaConf.create({"data": node | {"_target_": "perceptrail.data.sets.moons"}}))


def test_a_function_of_ones_own_is_made_by_its_name():
    node = {"_target_": "sklearn.datasets.load_iris", "return_X_y": True, "batch_size": 8}
    data = dataset(OmegaConf.create({"data": node}))
    assert (data.name, data.shape, len(data.classes)) == ("load_iris", (4,), 3)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of ten images, of 8x6 pixels."""
    for k, name in enumerate(["cat", "dog"]):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = RNG.integers(0, 100, (6, 8, 3), dtype=np.uint8) + np.uint8(100 * k)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def test_a_folder_of_images_is_read_by_class(pictures):
    data = folder(dir=pictures)
    (x, y), (_, y_test) = data.train(), data.test()
    assert (data.classes, data.shape, x.dtype) == (("cat", "dog"), (3, 6, 8), np.uint8)
    assert (np.bincount(y).tolist(), np.bincount(y_test).tolist()) == ([8, 8], [2, 2])
    assert ((x.mean(1) > 100) == y).all()
    files = {np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes() for f in pictures.glob("*/*")}
    assert {row.tobytes() for row in x} < files


def test_images_in_grey_and_of_a_size(pictures):
    data = folder(dir=pictures, mode="grey", size=4)
    assert (data.shape, data.train()[0].shape) == ((4, 4), (16, 16))


def test_the_digest_is_that_of_the_bytes(pictures):
    before = folder(dir=pictures).digest
    assert before == folder(dir=pictures).digest
    Image.new("RGB", (8, 6)).save(pictures / "cat" / "0.png")
    assert before != folder(dir=pictures).digest


def test_what_a_folder_cannot_be_is_said(pictures, tmp_path):
    Image.new("RGB", (9, 9)).save(pictures / "cat" / "0.png")
    with pytest.raises(UserError, match=r"data\.size=null: .* unequal size; .* is .*x.*, "):
        folder(dir=pictures, test=str(pictures)).train()
    (pictures / "fish").mkdir()
    with pytest.raises(UserError, match=r"data\.dir=.*: no image in the folder of class fish"):
        folder(dir=pictures)
    (pictures / "fish" / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"a\.png: not an image that can be read"):
        folder(dir=pictures, size=4, test=str(pictures)).train()
    with pytest.raises(UserError, match=r"data\.dir=.*none: there is no such folder"):
        folder(dir=tmp_path / "none")


def idx_file(path, array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def test_a_set_of_torchvision_is_read_from_a_local_folder(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = COLOUR[:20, :5, :5, 0], np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        idx_file(raw / f"{part}-images-idx3-ubyte", images)
        idx_file(raw / f"{part}-labels-idx1-ubyte", labels)
    data = torchvision(name="KMNIST", dir=tmp_path, download=False)
    x, y = data.train()
    assert (data.shape, data.classes[0], y.tolist()) == ((5, 5), "o", labels.tolist())
    assert np.array_equal(x.reshape(-1, 5, 5), images)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("KMNISTT", r"data\.name=KMNISTT: must be a set of .* \(did you mean 'KMNIST'\?\)"),
        ("CIFAR10", r"data\.name=CIFAR10, data\.dir=.*: Dataset not found"),
        ("FakeData", r"data\.name=FakeData: has no training and test part"),
    ],
)
def test_what_torchvision_has_not_is_said(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        torchvision(name=name, dir=tmp_path, download=False)


def test_colour_images_are_trained_on_and_tested_by_command(pictures, tmp_path):
    run(
        *("train.py", "data=folder", f"data.dir={pictures}", "data.batch_size=4", "trainer=cpu"),
        *("model=cnn", "data.size=16", "trainer.max_epochs=2", "tracking=none"),
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    tested = run("evaluate.py", "run=run", "tracking=none", cwd=tmp_path)
    assert "(4 examples of pets)" in tested.output
    assert (tmp_path / "run" / "figures" / "test" / "worst_mistakes.png").is_file()
    network, facts = load(tmp_path / "run" / "model")
    data = folder(dir=pictures, size=16)
    held = next(iter(sorted(pictures.rglob("*.png"))))
    image = read_image(held, **facts["pictures"])
    assert image.shape == data.shape
    label = facts["classes"][judge(network, image.reshape(1, -1), np.zeros(1, int)).predicted[0]]
    told = run("predict.py", "run=run", f"image={held}", "tracking=none", cwd=tmp_path)
    assert f"{held}: {label}  (" in told.output
