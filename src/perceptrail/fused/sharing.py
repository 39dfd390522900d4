"""Groups shared out among processes, one a core: half a stack on each of two is faster than one."""

import gc
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

import torch

from perceptrail.errors import UserError
from perceptrail.fused.group import Group
from perceptrail.fused.member import Member, Outcome
from perceptrail.processes import fork, interrupts_held

Told = Callable[[int], object]
Send = Callable[[Any], None]
Share = TypeVar("Share")


def fit(groups: Sequence[list[Member]], told: Told, *, processes: int | None) -> None:
    """Train groups of members of one shape; `told` hears of epochs as in `Group.fit`.

    Each process trains its share of every group, on one thread; by default there is one for each
    thread that PyTorch would have. Where there are fewer members than that, or an accelerator is at
    hand, and where members belong to a search's study, which only this process has open, they are
    trained here. Raises `UserError` if a process dies, as it does where memory is short.
    """
    count = processes or torch.get_num_threads()
    divided = able(count) and sum(map(len, groups)) >= count
    shares: list[list[list[Member]]] = [[] for _ in range(count)]
    for group in groups:
        if not divided or any(member.pruning for member in group):
            Group(group).fit(told)
            continue
        for part in (group[k::count] for k in range(min(count, len(group)))):
            min(shares, key=lambda share: sum(map(len, share))).append(part)

    def received(share: Sequence[list[Member]], news: int | list[Outcome]) -> None:
        if isinstance(news, int):
            told(news)
            return
        for member, outcome in zip((m for group in share for m in group), news, strict=True):
            member.outcome = outcome

    apart([share for share in shares if share], _train, received, does=_training)


def _train(share: Sequence[list[Member]], send: Send) -> None:
    for group in share:
        Group(group).fit(send)
    send([member.outcome for group in share for member in group])


def _training(share: Sequence[list[Member]]) -> str:
    return f"trained {sum(map(len, share))} networks"


def able(processes: int) -> bool:
    """Whether work can be shared out among so many."""
    return processes > 1 and sys.platform == "linux" and not torch.accelerator.is_available()


def apart(
    shares: Sequence[Share],
    work: Callable[[Share, Send], None],
    received: Callable[[Share, Any], None],
    *,
    does: Callable[[Share], str],
) -> None:
    """Have processes work, each on one share and one thread; what they send is `received`.

    They are forked, for what members hold is not for sending. When this one is interrupted they
    have SIGTERM, and what they still send is received. Raises what work does, and, saying what it
    `does`, `UserError` if a process dies.
    """
    lines: dict[Connection, tuple[ForkProcess, Share]] = {}
    processes: list[ForkProcess] = []
    try:
        with interrupts_held():
            for share in shares:
                near, far = Pipe(duplex=False)
                processes.append(fork(_work, work, share, far))
                far.close()
                lines[near] = processes[-1], share
        while lines:
            for line in wait(list(lines)):
                assert isinstance(line, Connection)
                process, share = lines[line]
                try:
                    error, done, news = pickle.loads(line.recv_bytes())
                except (EOFError, OSError):
                    process.join()
                    raise UserError(
                        f"hydra/launcher=fused: a process that {does(share)} died (exit code "
                        f"{process.exitcode}), perhaps for want of memory; "
                        "hydra.launcher.processes=1 does all in one process, fewer jobs need less"
                    ) from None
                if error is not None:
                    raise error
                if done:
                    del lines[line]
                    line.close()
                else:
                    received(share, news)
    finally:
        for process in processes:
            process.terminate()
        for line, (_, share) in lines.items():
            _receive_rest(line, partial(received, share))
        for process in processes:
            process.join()


def _receive_rest(line: Connection, received: Callable[[Any], None]) -> None:
    with line, suppress(EOFError, OSError, UserError):
        while True:
            error, done, news = pickle.loads(line.recv_bytes())
            if not (error or done):
                received(news)


def _work(work: Callable[[Share, Send], None], share: Share, line: Connection) -> None:
    gc.freeze()  # no collection is to go through what the first process has made, and copy it
    torch.set_num_threads(1)

    def send(news: Any, *, error: Exception | None = None, done: bool = False) -> None:
        line.send_bytes(pickle.dumps((error, done, news)))

    try:
        work(share, send)
        send(None, done=True)
    except UserError as error:
        send(None, error=error)
    except Exception:
        send(None, error=RuntimeError(traceback.format_exc()))
