"""Random changes to whole batches of images, on the device where they are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from perceptrail.errors import UserError

_INF = float("inf")


@final
@dataclass(frozen=True)
class Augment:
    """Random affine map and elastic deformation, drawn anew for each image of a batch.

    Every range is symmetric round "no change": `rotate` and `shear` in degrees, `scale` as a share
    (height and width apart), `translate` in pixels. The elastic field is that of Simard et al. 2003
    ("Best practices for convolutional neural networks", section 3): noise of the variance of
    U(-1, 1), smoothed by a Gaussian of `elastic_sigma` pixels, times `elastic_alpha` pixels. The
    noise is drawn in the few directions that smoothing leaves, which gives the same field for a
    tenth of the random numbers. Both together are one bilinear resampling; what comes in from
    outside is 0. Draws from PyTorch's global generator of the device.

    Raises `UserError` for a value out of its range.
    """

    shape: tuple[int, int]
    _: KW_ONLY
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    elastic_alpha: float = 0.0
    elastic_sigma: float = 4.0

    BOUNDS: ClassVar[Mapping[str, tuple[float, float, str]]] = {
        "rotate": (0, 180, "degrees from 0 to 180"),
        "scale": (0, 0.9, "a share from 0 to 0.9"),
        "shear": (0, 80, "degrees from 0 to 80"),
        "translate": (0, _INF, "pixels, at least 0"),
        "elastic_alpha": (0, _INF, "pixels, at least 0"),
        "elastic_sigma": (0.5, _INF, "pixels, at least 0.5"),
    }

    def __post_init__(self) -> None:
        for key, (low, high, allowed) in self.BOUNDS.items():
            value = getattr(self, key)
            if not (isinstance(value, int | float) and low <= value <= high):
                raise UserError(f"data.augment.{key}={value}: must be {allowed}")

    def __call__(self, x: Tensor) -> Tensor:
        """Deform x [b, h*w], or [b, 3*h*w] in colour, into another of the same shape."""
        affine = (self.rotate, self.scale, self.shear, self.translate)
        if not any(affine) and not self.elastic_alpha:
            return x
        coefficients = self._affine(len(x), x.device)
        basis = coordinates(self.shape, x.device)
        if self.elastic_alpha:
            fields = smooth_fields(self.shape, self.elastic_sigma, x.device)
            noise = torch.randn(len(x), 2, len(fields), device=x.device)
            coefficients = torch.cat([coefficients, noise * (self.elastic_alpha / 3**0.5)], dim=2)
            basis = torch.cat([basis, fields])
        return warp(x, coefficients @ basis, shape=self.shape)

    def _affine(self, n: int, device: torch.device) -> Tensor:
        """Random maps of the plane, [n, 2, 3]: rotation, shear, scaling, and a shift."""
        angle, shear, *scales, dx, dy = torch.rand(6, n, device=device) * 2 - 1
        angle *= math.radians(self.rotate)
        cos, sin = torch.cos(angle), torch.sin(angle)
        skew = torch.tan(shear * math.radians(self.shear))
        kx, ky = (1 / (1 + self.scale * scale) for scale in scales)
        rows = [
            *(cos * kx, (cos * skew - sin) * ky, dx * self.translate),
            *(sin * kx, (sin * skew + cos) * ky, dy * self.translate),
        ]
        return torch.stack(rows, dim=1).view(n, 2, 3)


@final
class Transforms:
    """torchvision's transforms, or what is called as they are, one after the other.

    They see images [b, channels, h, w] with values in [0, 1], on their device. Those of torchvision
    draw once for all images of a batch, where `Augment` draws for each, and faster.

    Raises `UserError` for what does not return images of the shape that it was given.
    """

    def __init__(self, shape: tuple[int, ...], transforms: Sequence[Callable[[Tensor], Tensor]]):
        self._shape = (1, *shape)[-3:]
        self._transforms = transforms
        tried = torch.rand(2, *self._shape)
        for k, transform in enumerate(transforms):
            try:
                with torch.random.fork_rng():
                    got = transform(tried)
            except Exception as error:
                line = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UserError(f"data.augment[{k}]: cannot be used on images ({line})") from error
            if (
                not (isinstance(got, Tensor) and got.is_floating_point())
                or got.shape != tried.shape
            ):
                raise UserError(
                    f"data.augment[{k}]: must return images {list(tried.shape)} as it is given"
                )

    def __call__(self, x: Tensor) -> Tensor:
        """Change the images x [b, channels*h*w] into others of the same shape."""
        images: Tensor = x.unflatten(1, self._shape)
        for transform in self._transforms:
            images = transform(images)
        return images.flatten(1)


def warp(x: Tensor, positions: Tensor, *, shape: tuple[int, int]) -> Tensor:
    """Sample the images x [b, channels*h*w] bilinearly at positions [b, 2, h*w].

    A position is a column and a row in pixels from the centre of the image; beyond its edges it is
    0 everywhere.
    """
    height, width = shape
    size = torch.tensor([width, height], device=x.device).view(2, 1)
    grid = (positions * (2 / size)).view(-1, 2, height, width).permute(0, 2, 3, 1)
    image = x.view(len(x), -1, height, width)
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False).flatten(1)


@lru_cache
def coordinates(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Column and row of every pixel, from the centre, and a row of ones: [3, h*w]."""
    y, x = (torch.arange(n, device=device) - (n - 1) / 2 for n in shape)
    column, row = torch.meshgrid(x, y, indexing="xy")
    return torch.stack([column.flatten(), row.flatten(), torch.ones_like(row).flatten()])


@lru_cache
def smooth_fields(shape: tuple[int, int], sigma: float, device: torch.device) -> Tensor:
    """Fields F [k, h*w] such that z @ F, z ~ N(0, 1), is white noise smoothed by a Gaussian.

    Smoothing is Gh N Gw', so that the covariance is (Gh Gh') x (Gw Gw'); the few eigenvectors of
    each that carry all but a millionth of it, times the roots of their eigenvalues, do the same.
    """
    factors = [_smoothing_factor(n, sigma) for n in shape]
    return torch.kron(*factors).T.to(device, torch.float32).contiguous()


def _smoothing_factor(n: int, sigma: float) -> Tensor:
    at = torch.arange(n, dtype=torch.float64)
    bell = torch.exp(-((at - at[:, None]) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    values, vectors = torch.linalg.eigh(bell @ bell.T)
    kept = values > 1e-6 * values[-1]
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
