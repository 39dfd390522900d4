"""Drawn digits against MNIST's own images of them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from perceptrail.data import idx
from perceptrail.data.image import image_files, read_digit
from perceptrail.errors import UserError

NEAREST, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def digits(mnist_dir):
    return idx.read(mnist_dir / "t10k-images-idx3-ubyte")[:200]


@pytest.fixture
def prepared(tmp_path):
    """Writes an image, an array or a Pillow image, to a file and reads it as a digit."""

    def write_and_read(image, suffix=".png", shape=(28, 28), **options):
        path = tmp_path / f"digit{suffix}"
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return read_digit(path, shape=shape)

    return write_and_read


def page(digit, corner=(40, 110), size=(400, 500), scale=9, resample=BICUBIC):
    """The digit drawn large, white on black, somewhere on a page."""
    large = Image.fromarray(digit).resize((28 * scale, 28 * scale), resample)
    sheet = Image.new("L", size[::-1])
    sheet.paste(large, corner[::-1])
    return np.asarray(sheet)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def agreement(read, image):
    """Their correlation, where one may lie a pixel off: a centre between two pixels can tip."""
    moves = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    return max(correlation(np.roll(read, move, (0, 1)), image) for move in moves)


def centre_of_mass(field):
    return [np.average(np.arange(len(m)), weights=m) for m in (field.sum(1), field.sum(0))]


def test_an_mnist_digit_comes_out_as_it_is(digits, prepared):
    for digit in digits:
        read = prepared(digit)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, digit / digit.max(), atol=1e-6)
        again = prepared((read * 255).round().astype(np.uint8))
        np.testing.assert_allclose(again, read, atol=1 / 255)


@pytest.mark.parametrize(
    ("resample", "median", "least"), [(NEAREST, 0.99, 0.95), (BICUBIC, 0.97, 0.85)]
)
def test_a_digit_drawn_large_becomes_the_mnist_image_of_it(
    digits, prepared, resample, median, least
):
    agreements = []
    for digit in digits:
        read = prepared(255 - page(digit, resample=resample))
        agreements.append(agreement(read, digit))
        np.testing.assert_allclose(centre_of_mass(read), 14, atol=0.5)
        assert (read.min(), read.max()) == (0, 1)
    assert np.median(agreements) > median
    assert min(agreements) > least


def _rgba(ink, colour):
    return Image.merge("RGBA", [*Image.new("RGB", ink.shape[::-1], colour).split(), _grey(ink)])


def _grey(ink):
    return Image.fromarray(ink)


def _transparent_palette(ink):
    black = Image.new("P", ink.shape[::-1])  # every index is black; index 0 lets the paper through
    black.putpalette([0, 0, 0] * 256)
    black.paste(1, mask=_grey(ink))
    black.info["transparency"] = 0
    return black


SHEETS = {
    "white on black": _grey,
    "black on white": lambda ink: _grey(255 - ink),
    "grey on grey": lambda ink: _grey((200 - ink / 255 * 90).round().astype(np.uint8)),
    "RGB": lambda ink: _grey(255 - ink).convert("RGB"),
    "blue ink": lambda ink: Image.merge("RGB", [_grey(255 - ink)] * 2 + [_grey(ink * 0 + 255)]),
    "CMYK": lambda ink: _grey(255 - ink).convert("RGB").convert("CMYK"),
    "transparent, black ink": lambda ink: _rgba(ink, "black"),
    "transparent, white ink": lambda ink: _rgba(ink, "white"),
    "opaque RGBA": lambda ink: _grey(255 - ink).convert("RGBA"),
    "grey with alpha": lambda ink: Image.merge("LA", [_grey(ink * 0), _grey(ink)]),
    "palette": lambda ink: _grey(255 - ink).convert("P"),
    "transparent palette": _transparent_palette,
    "one bit": lambda ink: _grey(ink > 127),
    "16 bits": lambda ink: _grey(65535 - ink.astype(np.uint16) * 257),
    "12 bits in 16": lambda ink: _grey(4095 - ink.astype(np.uint16) * 16),
    "32 bits": lambda ink: _grey(ink.astype(np.int32) * 1000),
    "float": lambda ink: _grey(1 - ink.astype(np.float32) / 255),
}
SUFFIX = {"CMYK": ".tif", "32 bits": ".tif", "float": ".tif"}  # where PNG has no such mode


@pytest.mark.parametrize("name", SHEETS)
def test_the_same_digit_comes_out_of_every_kind_of_image(digits, prepared, name):
    for digit in digits[:10]:
        ink = page(digit, resample=NEAREST)
        if name in {"one bit", "transparent palette"}:  # without greys
            ink = np.where(ink > 127, 255, 0).astype(np.uint8)
        read = prepared(SHEETS[name](ink), SUFFIX.get(name, ".png"))
        np.testing.assert_allclose(read, prepared(ink), atol=0.02)


def test_position_margins_and_size_do_not_matter(digits, prepared):
    for digit in digits[:20]:
        reference = prepared(page(digit))
        moved = prepared(page(digit, corner=(140, 3), size=(392, 700)))
        np.testing.assert_allclose(moved, reference, atol=1e-6)
        reference = prepared(page(digit, resample=NEAREST))
        for corner, size, scale in (((7, 7), (200, 300), 5), ((9, 9), (900, 900), 30)):
            read = prepared(page(digit, corner, size, scale, NEAREST))
            np.testing.assert_allclose(read, reference, atol=0.02)


def test_compression_and_a_shaded_noisy_photograph_are_forgiven(digits, prepared):
    noise = np.random.default_rng(0)
    for digit in digits[:20]:
        sheet = page(digit)
        reference = prepared(sheet)
        assert agreement(prepared(255 - sheet, ".jpg", quality=60), reference) > 0.95
        shade = np.linspace(190, 160, sheet.shape[1]) + noise.normal(0, 4, sheet.shape)
        photograph = (shade - sheet / 255 * 130).round().astype(np.uint8)
        assert agreement(prepared(photograph, ".jpg"), reference) > 0.85


def test_a_turned_camera_is_turned_back(digits, prepared):
    sheet = Image.fromarray(255 - page(digits[0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF 2.32, table 4: the 0th row of the file is the right-hand side
    turned = sheet.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(prepared(turned, exif=exif), prepared(sheet), atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (56, 56), (14, 28)])
def test_the_box_keeps_the_aspect_ratio_and_its_share_of_any_field(prepared, shape):
    sheet = Image.new("L", (300, 300), "white")
    ImageDraw.Draw(sheet).rectangle((100, 20, 149, 119), fill="black")  # 100 high, 50 wide
    read = prepared(sheet, shape=shape)
    height, width = (np.ptp(np.flatnonzero(read.any(axis))) + 1 for axis in (1, 0))
    assert read.shape == shape
    assert abs(height - shape[0] * 20 / 28) <= 1
    assert abs(width - height / 2) <= 1
    assert all(
        abs(centre - side // 2) <= 0.5
        for centre, side in zip(centre_of_mass(read), shape, strict=True)
    )


def test_a_lopsided_shape_stays_whole_in_the_field(prepared):
    sheet = Image.new("L", (400, 400), "white")
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((50, 50, 349, 109), fill="black")  # nearly all the ink at the top
    draw.line((200, 110, 200, 349), fill="black", width=8)
    read = prepared(sheet)
    assert np.ptp(np.flatnonzero(read.any(1))) + 1 == 20
    assert read[-1].max() > 0.1


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_sheet_is_refused(prepared, level):
    sheet = np.full((50, 60), level, np.uint8)
    sheet[20, 30] ^= 1  # a trace that no eye would see
    with pytest.raises(UserError, match=r"image=.*digit\.png: the image is blank"):
        prepared(sheet)


def test_a_transparent_sheet_without_ink_is_refused(prepared):
    with pytest.raises(UserError, match="the image is blank"):
        prepared(Image.new("RGBA", (40, 40), (0, 0, 0, 0)))


@pytest.mark.parametrize(
    "content", [b"", b"seven", b"<html><svg/></html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foo.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"image=.*foo\.png: not an image .*PNG, JPEG"):
        read_digit(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp"])
def test_an_image_cut_short_is_refused(tmp_path, digits, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(page(digits[0])).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not an image that can be read"):
        read_digit(path)


def test_the_images_of_a_folder_are_those_with_an_image_s_suffix_in_order(tmp_path):
    names = ["b.PNG", "a.jpeg", "c.tif", "notes.txt", "picture.svg", "noend"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpeg", "b.PNG", "c.tif"]
    assert image_files(tmp_path / "noend") == [tmp_path / "noend"]


def test_a_folder_without_images_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"image=.*: no image in this folder \(allowed: \.png"):
        image_files(tmp_path)
    with pytest.raises(UserError, match=r"image=.*nothing\.png: no such file or folder"):
        image_files(tmp_path / "nothing.png")
