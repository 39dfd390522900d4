"""Pictures of digits, prepared as the images of MNIST were."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perceptrail.errors import UserError

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
}

# LeCun et al. 1998, Gradient-based learning applied to document recognition, section III.A: the
# digit fits a 20x20 box, whose centre of mass is the centre of the 28x28 field.
_BOX, _FIELD = 20, 28
_CONTRAST = 0.05  # of black to white: less than this is a blank sheet
_FAINT = 0.2  # the box is drawn around the ink above this: compression leaves traces below it

Grey = NDArray[np.float32]


def image_files(path: Path) -> list[Path]:
    """The image at `path`, or those in the folder `path`, sorted by name; subfolders are left out.

    Raises `UserError` where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"image={path}: no such file or folder")
    suffixes = sum(FORMATS.values(), ())
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
    if not found:
        raise UserError(f"image={path}: no image in this folder (allowed: {', '.join(suffixes)})")
    return found


def read_digit(path: Path, *, shape: tuple[int, int] = (_FIELD, _FIELD)) -> Grey:
    """One digit from an image file as float32 `shape`: ink is 1, paper is 0.

    Any size and mode will do, dark ink on light paper or the reverse. The ink is cut out, scaled
    with its aspect ratio kept to fit a box of 20/28 of the field, and laid down by whole pixels so
    that its centre of mass comes to the pixel `(height // 2, width // 2)`, as in MNIST.

    Raises `UserError` for a file that cannot be read or that shows nothing.
    """
    ink = _ink(_brightness(path))
    if not ink.max() > _CONTRAST:  # nor is NaN, which a float image may hold
        raise UserError(f"image={path}: the image is blank (allowed: one digit on plain paper)")
    ink = _fit(ink / ink.max(), box=(shape[0] * _BOX // _FIELD, shape[1] * _BOX // _FIELD))
    return _lay_down(ink / ink.max(), shape=shape)


def _brightness(path: Path) -> Grey:
    """Brightness [height, width], white being 1; what is transparent shows paper."""
    try:
        with Image.open(path, formats=list(FORMATS)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):  # deeper than 8 bits: convert("L") would clip
                deep = np.asarray(image, dtype=np.float32)
                return deep / np.float32(max(deep.max(), 1e-9))
            layer = image.convert("RGBA") if image.has_transparency_data else None
            flat = image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image={path}: not an image that can be read (allowed: {', '.join(FORMATS)})"
        ) from error
    if layer:
        flat = _on_paper(layer, "white")
        low, high = flat.getextrema()
        if low == high:  # white ink
            flat = _on_paper(layer, "black")
    return np.asarray(flat, dtype=np.float32) / np.float32(255)


def _on_paper(layer: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer).convert("L")


def _ink(brightness: Grey) -> Grey:
    """How far each pixel differs from the paper, towards the ink: the darker or the brighter side.

    The border is taken for paper: its median is the paper's brightness, its spread the noise and
    shading to be forgiven.
    """
    border = np.concatenate([brightness[0], brightness[-1], brightness[:, 0], brightness[:, -1]])
    paper = np.float32(np.median(border))
    noise = 3 * np.float32(np.median(np.abs(border - paper)))
    dark = 2 * paper > brightness.min() + brightness.max()
    difference = paper - brightness if dark else brightness - paper
    return difference.clip(min=noise) - noise


def _fit(ink: Grey, *, box: tuple[int, int]) -> Grey:
    """The ink at the largest size that fits `box`, anti-aliased, in a rim of one pixel.

    The rim keeps what is fainter than the ink that the box is measured by, so that an image which
    is as MNIST's already comes out unchanged.
    """
    rows, columns = (np.flatnonzero((ink > _FAINT).any(axis=axis)) for axis in (1, 0))
    tall, broad = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    scale = min(box[0] / tall, box[1] / broad)
    height, width = max(round(tall * scale), 1), max(round(broad * scale), 1)
    down, across = tall / height, broad / width  # source pixels to one pixel
    pad = math.ceil(max(down, across))
    window = np.pad(ink, pad)[
        rows[0] : rows[-1] + 1 + 2 * pad, columns[0] : columns[-1] + 1 + 2 * pad
    ]
    scaled = Image.fromarray(window).resize(
        (width + 2, height + 2),
        Image.Resampling.BOX if scale <= 1 else Image.Resampling.BICUBIC,
        box=(pad - across, pad - down, pad + broad + across, pad + tall + down),
    )
    return np.asarray(scaled).clip(min=0)  # a cubic falls below 0 beside an edge


def _lay_down(ink: Grey, *, shape: tuple[int, int]) -> Grey:
    """The ink, which has a rim of one pixel, with its centre of mass at the middle of `shape`."""
    field = np.zeros((shape[0] + 2, shape[1] + 2), dtype=np.float32)
    corner = []
    for axis, side in enumerate(shape):
        mass = ink.sum(axis=1 - axis)
        centre = mass @ np.arange(len(mass)) / mass.sum() - 1
        start = math.floor(side // 2 + 0.5 - centre)
        corner.append(min(max(start, 0), side + 2 - len(mass)))
    top, left = corner
    field[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return field[1:-1, 1:-1]
