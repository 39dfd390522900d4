"""Groups shared out among processes, one a core: half a stack on each of two is faster than one."""

import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import torch

from perceptrail.errors import UserError
from perceptrail.fused.group import Group
from perceptrail.fused.member import Member, Outcome
from perceptrail.processes import follow

Told = Callable[[int], object]


def fit(groups: Sequence[list[Member]], told: Told, *, processes: int | None) -> None:
    """Train groups of members of one shape; `told` hears of epochs as in `Group.fit`.

    Each process trains its share of every group, on one thread; by default there is one for each
    thread that PyTorch would have. Where there are fewer members than that, or an accelerator is at
    hand, and where members belong to a search's study, which only this process has open, they are
    trained here. Raises `UserError` if a process dies, as it does where memory is short.
    """
    count = processes or torch.get_num_threads()
    able = sys.platform == "linux" and not torch.accelerator.is_available()
    apart = able and count > 1 and sum(map(len, groups)) >= count
    shares: list[list[list[Member]]] = [[] for _ in range(count)]
    for group in groups:
        if not apart or any(member.pruning for member in group):
            Group(group).fit(told)
            continue
        for part in (group[k::count] for k in range(min(count, len(group)))):
            min(shares, key=lambda share: sum(map(len, share))).append(part)
    _fit_apart([share for share in shares if share], told)


def _fit_apart(shares: Sequence[list[list[Member]]], told: Told) -> None:
    fork = get_context("fork")  # for what the members hold is not for sending
    lines: dict[Connection, tuple[ForkProcess, list[Member]]] = {}
    processes: list[ForkProcess] = []
    try:
        for share in shares:
            near, far = fork.Pipe(duplex=False)
            processes.append(fork.Process(target=_work, args=(share, far), daemon=True))
            with warnings.catch_warnings():
                # Python 3.12 warns of the threads that the fork will not have: it needs none.
                warnings.simplefilter("ignore", DeprecationWarning)
                processes[-1].start()
            far.close()
            lines[near] = processes[-1], [member for group in share for member in group]
        while lines:
            for line in wait(list(lines)):
                assert isinstance(line, Connection)
                process, members = lines[line]
                try:
                    news = pickle.loads(line.recv_bytes())
                except (EOFError, OSError):
                    process.join()
                    raise UserError(
                        f"hydra/launcher=fused: a process that trained {len(members)} networks "
                        f"died (exit code {process.exitcode}), perhaps for want of memory; "
                        "hydra.launcher.processes=1 trains in one process, fewer jobs need less"
                    ) from None
                if isinstance(news, Exception):
                    raise news
                if isinstance(news, int):
                    told(news)
                    continue
                for member, outcome in zip(members, news, strict=True):
                    member.outcome = outcome
                del lines[line]
                line.close()
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _work(share: Sequence[list[Member]], line: Connection) -> None:
    follow()
    torch.set_num_threads(1)

    def send(news: int | Exception | list[Outcome]) -> None:
        line.send_bytes(pickle.dumps(news))

    try:
        for group in share:
            Group(group).fit(send)
        send([member.outcome for group in share for member in group])
    except UserError as error:
        send(error)
    except Exception:
        send(RuntimeError(traceback.format_exc()))
