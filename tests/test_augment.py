"""Augmentation against closed forms, SciPy and the statistics of what it draws."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.ndimage import gaussian_filter
from torchvision.transforms import v2

from perceptrail.build import use
from perceptrail.data.augment import Augment, Transforms, coordinates, smooth_fields, warp
from perceptrail.errors import UserError

CPU = torch.device("cpu")
ALL = {
    "rotate": 20,
    "scale": 0.2,
    "shear": 10,
    "translate": 2,
    "elastic_alpha": 36,
    "elastic_sigma": 5,
}


def images(n, height, width):
    return torch.rand(n, height * width, generator=torch.Generator().manual_seed(0))


def positions(matrix, shift, shape):
    """Where an affine map samples: [1, 2, h*w]."""
    affine = torch.cat([torch.tensor(matrix), torch.tensor(shift).view(2, 1)], dim=1)
    return (affine @ coordinates(shape, CPU))[None]


def test_nothing_to_do_is_the_very_same_batch():
    x = images(3, 28, 28)
    assert Augment((28, 28))(x) is x


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (5, 9)])
def test_sampling_every_pixel_where_it_is_changes_nothing(shape):
    x = images(3, *shape)
    stay = positions([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], shape).expand(3, -1, -1)
    torch.testing.assert_close(warp(x, stay, shape=shape), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_rot90(turns):
    x = images(1, 28, 28)
    angle = torch.tensor(turns * torch.pi / 2)
    cos, sin = angle.cos().item(), angle.sin().item()
    turned = warp(x, positions([[cos, -sin], [sin, cos]], [0.0, 0.0], (28, 28)), shape=(28, 28))
    expected = torch.rot90(x.view(28, 28), turns)
    torch.testing.assert_close(turned.view(28, 28), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-4, 1), (9, 0)])
def test_whole_pixel_shifts_bring_in_zeros(right, down):
    shape = (6, 9)
    x = images(1, *shape)
    moved = warp(x, positions([[1.0, 0.0], [0.0, 1.0]], [-right, -down], shape), shape=shape)
    expected = torch.roll(x.view(shape), (down, right), (0, 1))
    rows, columns = torch.arange(6)[:, None] - down, torch.arange(9) - right
    expected[~((rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 9))] = 0
    torch.testing.assert_close(moved.view(shape), expected, atol=1e-5, rtol=0)


def test_a_seed_repeats_it_and_every_image_differs():
    augment = Augment((28, 28), **ALL)
    x = images(1, 28, 28).expand(16, -1)
    torch.manual_seed(1)
    one, next_one = augment(x), augment(x)
    torch.manual_seed(1)
    same = augment(x)
    assert torch.equal(one, same)
    assert not torch.equal(one, next_one)
    assert one.shape == x.shape
    assert len({image.numpy().tobytes() for image in one}) == 16


def disc(shape, radius):
    height, width = shape
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    away = torch.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
    return (away <= radius).float().flatten()


def centre(x, shape):
    """Centre of mass of each image, as column and row from the middle: [b, 2]."""
    return (x @ coordinates(shape, CPU)[:2].T) / x.sum(dim=1, keepdim=True)


def test_a_shift_stays_in_its_range_and_fills_it():
    shape = (31, 41)
    x = disc(shape, 6).expand(2000, -1)
    torch.manual_seed(0)
    moved = centre(Augment(shape, translate=3.0)(x), shape)
    assert moved.abs().max() <= 3.001
    # Uniform: standard deviation 3/sqrt(3), up to its sampling error of 2%.
    torch.testing.assert_close(moved.std(dim=0), torch.full((2,), 3**0.5), rtol=0.05, atol=0)


def test_a_scale_stays_in_its_range_and_fills_it():
    shape = (41, 41)
    x = disc(shape, 10)
    torch.manual_seed(0)
    area = Augment(shape, scale=0.25)(x.expand(4000, -1)).sum(dim=1) / x.sum()
    assert area.min() == pytest.approx(0.75**2, abs=0.05)
    assert area.max() == pytest.approx(1.25**2, abs=0.05)
    assert area.mean() == pytest.approx(1, abs=0.02)


def test_rotation_and_shear_keep_area_and_centre():
    shape = (41, 41)
    x = disc(shape, 8)
    torch.manual_seed(0)
    turned = Augment(shape, rotate=180, shear=30)(x.expand(200, -1))
    torch.testing.assert_close(turned.sum(dim=1), x.sum().expand(200), rtol=0.02, atol=0)
    torch.testing.assert_close(centre(turned, shape), torch.zeros(200, 2), rtol=0, atol=1e-3)


def test_rotation_fills_its_range():
    shape = (41, 41)
    bar = torch.zeros(shape)
    bar[20, 22:38] = 1
    torch.manual_seed(0)
    column, row = centre(Augment(shape, rotate=30)(bar.flatten().expand(2000, -1)), shape).T
    angle = torch.rad2deg(torch.atan2(row, column))
    assert angle.abs().max() == pytest.approx(30, abs=0.5)
    assert angle.std() == pytest.approx(30 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("shape", "sigma"), [((28, 28), 4.0), ((28, 28), 6.0), ((8, 12), 1.0)])
def test_smooth_fields_have_the_covariance_of_smoothed_white_noise(shape, sigma):
    n = shape[0] * shape[1]
    pulses = np.eye(n).reshape(n, *shape)
    blurred = np.stack(
        [gaussian_filter(p, sigma, mode="constant", truncate=40 / sigma) for p in pulses]
    ).reshape(n, n)
    fields = smooth_fields(shape, sigma, CPU).double().numpy()
    covariance = blurred.T @ blurred
    np.testing.assert_allclose(fields.T @ fields, covariance, atol=1e-3 * covariance.max())


def test_an_elastic_field_moves_pixels_by_the_size_that_was_asked_for():
    shape, sigma, alpha = (28, 28), 4.0, 30.0
    x = disc(shape, 1.5).expand(3000, -1)
    torch.manual_seed(0)
    moved = centre(Augment(shape, elastic_alpha=alpha, elastic_sigma=sigma)(x), shape)
    # White noise of variance 1/3, smoothed in the plane, keeps 1 / (4 pi sigma^2) of its variance.
    expected = alpha * (1 / 3 / (4 * torch.pi * sigma**2)) ** 0.5
    torch.testing.assert_close(moved.std(dim=0), torch.full((2,), expected), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rotate", -1), ("rotate", 181), ("scale", 1), ("shear", 90), ("translate", -0.1)),
        *(("elastic_alpha", float("nan")), ("elastic_sigma", 0), ("rotate", "far")),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(UserError, match=rf"data\.augment\.{key}={value}: must be "):
        Augment((28, 28), **{key: value})


def test_the_colours_of_an_image_are_deformed_alike():
    grey = torch.rand(4, 28 * 28)
    augment = Augment((28, 28), **ALL)
    torch.manual_seed(0)
    once = augment(grey)
    torch.manual_seed(0)
    assert torch.equal(augment(grey.repeat(1, 3)), once.repeat(1, 3))


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5)], ids=["grey", "colour"])
def test_transforms_of_torchvision_see_images_one_after_the_other(shape):
    x = torch.rand(4, int(np.prod(shape)))
    augment = Transforms(shape, [v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0)])
    expected = x.view(4, *shape).flip(-1, -2).flatten(1)
    assert torch.equal(augment(x), expected)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (v2.RandomCrop(4), r"data\.augment\[0\]: must return images \[2, 1, 6, 5\] as it is given"),
        (v2.MixUp(num_classes=3), r"data\.augment\[0\]: cannot be used on images \(ValueError: "),
    ],
    ids=["another size", "wants labels"],
)
def test_transforms_that_do_not_suit_are_named(transform, said):
    with pytest.raises(UserError, match=said):
        Transforms((6, 5), [transform])


def test_transforms_are_made_of_the_configuration():
    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 1.0}
    data = {"batch_size": 1, "val_size": 1, "train_size": None, "augment": [flip]}
    (made,) = use(OmegaConf.create({"data": data}))["augment"]
    assert (type(made), made.p) == (v2.RandomHorizontalFlip, 1.0)
    flip["_target_"] = "torchvision.transforms.v2.RandomFlip"
    with pytest.raises(UserError, match=r"data\.augment\[0\]\._target_=.*: cannot be imported"):
        use(OmegaConf.create({"data": data}))
