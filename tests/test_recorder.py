"""How a run ends in the store: as what happens inside ends, whichever process dies."""

import json
import os
import socket

import psutil
import pytest
from omegaconf import OmegaConf

from perceptrail import recorder
from perceptrail.errors import UserError
from perceptrail.recorder import LateLog, RunLog


class Line:
    """A recorder that keeps what it is told."""

    def __init__(self):
        self.told = []

    def post(self, method, *args, **kwargs):
        """Keep a call."""
        self.told.append((method, args, kwargs))

    call = post


def test_a_run_is_finished():
    line = Line()
    with RunLog(line, "id").closing() as log:
        log.post("log_params", {"a": 1})
    assert line.told == [
        ("log_params", ("id", {"a": 1}), {}),
        ("close_run", ("id",), {"status": "FINISHED"}),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("why"), "FAILED"), (KeyboardInterrupt("why"), "KILLED"), (SystemExit(), "KILLED")],
)
def test_an_error_ends_the_run_and_goes_on(error, status):
    line = Line()
    with pytest.raises(type(error)) as raised, RunLog(line, "id").closing():
        raise error
    assert raised.value is error
    assert line.told == [("close_run", ("id",), {"status": status, "note": f"{status}: {error}"})]


def test_a_late_log_tells_all_when_it_is_closed():
    line = Line()
    with LateLog(line, "id").closing() as log:
        log.post("log_params", {"a": 1})
        assert line.told == []
    assert line.told == [
        ("log_all", ("id", [("log_params", ({"a": 1},), {})]), {}),
        ("close_run", ("id",), {"status": "FINISHED"}),
    ]


def test_a_late_log_of_a_run_that_is_not_open_tells_it_whole():
    line = Line()
    opening = {"key": "k", "tags": {}}
    with LateLog(line, "id", opening=opening).closing() as log:
        log.post("log_params", {"a": 1})
    calls = [("log_params", ({"a": 1},), {})]
    assert line.told == [("log_run", ("id", calls), {**opening, "status": "FINISHED"})]


def test_without_a_store_nothing_is_told():
    with RunLog(None, None).closing() as log:
        log.post("log_params", {"a": 1})


@pytest.mark.parametrize(
    ("run", "place"),
    [
        ("sweep/0", ("sqlite:///theirs.db", "theirs")),
        ("sweep", ("sqlite:///theirs.db", "theirs")),
        ("0123abcd", ("sqlite:///theirs.db", "theirs")),
        ("secret", ("postgresql://me:known@host/store", "theirs")),
        ("best", ("postgresql://me:known@host/store", "ours")),
        ("untracked", None),
        ("nothing", None),
        (5, None),
    ],
)
def test_the_recorder_of_a_stored_run_is_known_before_pytorch_is(tmp_path, monkeypatch, run, place):
    monkeypatch.chdir(tmp_path)
    theirs = {
        "key": "k",
        "uri": "sqlite:///theirs.db",
        "experiment": "theirs",
        "started": 0,
    }
    for folder, record in {
        "sweep/0": theirs | {"run_id": "1"},
        "outputs/day/time": theirs | {"run_id": "0123abcd"},
        "secret": theirs | {"run_id": "2", "uri": "postgresql://me:***@host/store"},
        "untracked": theirs | {"run_id": None},
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in ("run.json", "metrics.json"):
            (tmp_path / folder / name).write_text(json.dumps(record))
    asked = []
    monkeypatch.setattr(recorder, "connect", lambda *given: asked.append(given))
    ours = {"uri": "postgresql://me:known@host/store", "experiment": "ours"}
    recorder.foresee(OmegaConf.create({"run": run, "tracking": ours}))
    assert asked == ([] if place is None else [place])


@pytest.mark.parametrize("unread", [0, 100])
def test_a_recorder_that_dies_is_told_of_once(tmp_path, unread):
    place = f"sqlite:///{tmp_path}/mlflow.db", "e"
    before = set(psutil.Process().children())
    line = recorder.connect(*place)
    (process,) = set(psutil.Process().children()) - before
    recorder.settle()
    process.suspend()
    for _ in range(unread):
        line.post("ping", "")
    process.kill()
    with pytest.raises(UserError, match="the process that records has died"):
        recorder.settle()
    assert recorder.connect(*place) is not line
    recorder.settle()


def test_what_is_open_is_ended_even_if_the_client_dies_before_it_has_its_answer():
    class Server:
        """Its client can be made to die."""

        def ping(self):
            """Answer."""
            told.append("ping")

        def die(self):
            """Close the client's end."""
            ours.close()

        def flush(self):
            """There is nothing to write."""

        def abandon(self):
            """End what is open."""
            told.append("abandon")

    told = []
    ours, theirs = socket.socketpair()
    line = recorder.Connection(os.dup(ours.fileno()))
    for message in (("uri", "e"), (True, "ping", (), {}), (False, "die", (), {})):
        line.send(message)
    line.close()
    recorder.serve(lambda uri, experiment: Server(), theirs.detach())
    assert told == ["ping", "abandon"]
