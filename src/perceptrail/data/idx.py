"""IDX, the file format of MNIST: reading, writing, and the checksums of the files known here."""

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceptrail.errors import UserError

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class KnownFile:
    """A file whose content is known: its usual name, its size in bytes and its MD5, unpacked."""

    name: str
    size: int
    md5: str


_SIZES = (47_040_016, 60_008, 7_840_016, 10_008)
# Of the unpacked files, so that one sum judges raw, packed and rebuilt copies alike.
_MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
FILES: Mapping[str, tuple[KnownFile, ...]] = {
    name: tuple(map(KnownFile, NAMES, _SIZES, sums)) for name, sums in _MD5.items()
}

# Two zero bytes, then the element type: unsigned bytes, the only one that MNIST's files use.
_MAGIC = b"\0\0\x08"
_GZIP = b"\x1f\x8b"


def md5(content: bytes) -> str:
    """The MD5 of `content` in hexadecimal: against accidents, not against attackers."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def md5_of(path: Path) -> str:
    """That of the unpacked content of a file."""
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            return md5(unpack(path.read_bytes()))
        file.seek(0)
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def unpack(content: bytes, *, limit: int = -1) -> bytes:
    """`content` itself, or where it is a gzip file what that holds, up to `limit` bytes of it.

    Raises `UserError` if the gzip file is damaged.
    """
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return file.read(limit)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"damaged gzip file ({error})") from error


def decode(content: bytes) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file: 3 bytes of magic, the number of dimensions, the sizes
    as big-endian 32-bit integers, the elements in C order.

    Raises `UserError` if that is not exactly what `content` holds.
    """
    if content[:3] != _MAGIC or len(content) < 4:
        raise UserError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex(' ')}")
    start = 4 + 4 * content[3]
    if content[3] == 0 or len(content) < start:
        raise UserError(f"an IDX file of {content[3]} dimensions with {len(content)} bytes")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    size = start + math.prod(shape)
    if len(content) != size:
        raise UserError(f"an IDX file of shape {shape} has {size} bytes, this one {len(content)}")
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def encode(array: NDArray[np.uint8]) -> bytes:
    """The bytes of the IDX file that holds `array`, of one dimension or more."""
    return header(array.shape) + array.tobytes()


def header(shape: tuple[int, ...]) -> bytes:
    """What the file of an array of that shape begins with."""
    return _MAGIC + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()


def read(path: Path) -> NDArray[np.uint8]:
    """The array in the IDX file at `path`, raw or gzip; `UserError` names the path.

    That of a raw file is a memory map, whose values can be changed, but not those in the file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            sizes = file.read(4 * head[3]) if head[:3] == _MAGIC and len(head) == 4 else b""
            shape = np.frombuffer(sizes, ">u4").tolist() if sizes and len(sizes) % 4 == 0 else []
            if shape and path.stat().st_size == 4 + len(sizes) + math.prod(shape):
                return np.memmap(file, np.uint8, "c", file.tell(), tuple(shape))
        return decode(unpack(path.read_bytes()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write `array` as an IDX file, packed if the name ends in `.gz`."""
    content = encode(array)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
