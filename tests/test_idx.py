"""IDX files against the bytes of the specification."""

import gzip
import re
import struct

import numpy as np
import pytest

from perceptrail.data import idx

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# The format as its specification puts it: 0, 0, type 8, dimensions, sizes, data.
BYTES = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))


def test_the_bytes_are_those_of_the_specification():
    assert idx.encode(PIXELS) == BYTES
    np.testing.assert_array_equal(idx.decode(BYTES), PIXELS)
    assert idx.decode(BYTES).dtype == np.uint8


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("shape", [(0,), (7,), (2, 3, 4), (1, 2, 3, 4)])
def test_what_is_written_is_read_back(tmp_path, name, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    idx.write(tmp_path / name, array)
    np.testing.assert_array_equal(idx.read(tmp_path / name), array)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        BYTES[:10],
        BYTES[:-1],
        BYTES + b"\0",
        b"<!DOCTYPE html><html></html>",
        b"\0\0\x0d" + BYTES[3:],
        b"\0\0\x08\0\x05",
        gzip.compress(BYTES)[:-9],
        gzip.compress(BYTES)[:30] + b"\xff" * 9 + gzip.compress(BYTES)[39:],
        gzip.compress(BYTES[:-1]),
    ],
    ids=[
        *("empty", "magic cut", "header cut", "data cut", "trailing", "html", "floats"),
        *("no dimensions", "gzip cut", "gzip damaged", "gzip of a cut file"),
    ],
)
def test_anything_else_is_refused_by_path(tmp_path, content):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        idx.read(path)


def test_unpacking_stops_at_the_limit():
    assert idx.unpack(gzip.compress(bytes(10**6)), limit=1000) == bytes(1000)


def test_each_known_size_is_that_of_the_set_s_shapes():
    shapes = [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    sizes = [len(idx.encode(np.zeros(shape, np.uint8))) for shape in shapes]
    for files in idx.FILES.values():
        assert [file.size for file in files] == sizes
