"""Groups shared out among processes, one a core: half a stack on each of two is faster than one."""

import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import torch

from perceptrail.errors import UserError
from perceptrail.fused.group import Group
from perceptrail.fused.member import Member, Outcome

Told = Callable[[int], object]


def fit(groups: Sequence[list[Member]], told: Told) -> None:
    """Train groups of members of one shape; `told` hears of epochs as in `Group.fit`.

    What trains on a GPU, or belongs to a search's study, which only this process has open, stays
    here. Raises `UserError` if a process dies, as it does where memory is short.
    """
    shared: list[list[list[Member]]] = [[] for _ in range(torch.get_num_threads())]
    for group in groups:
        if len(shared) == 1 or sys.platform != "linux" or _stays(group):
            Group(group).fit(told)
            continue
        for part in (group[k :: len(shared)] for k in range(len(shared))):
            if part:
                min(shared, key=lambda share: sum(map(len, share))).append(part)
    _fit_apart([share for share in shared if share], told)


def _stays(group: Sequence[Member]) -> bool:
    return any(member.device.type != "cpu" or member.pruning for member in group)


def _fit_apart(shares: Sequence[list[list[Member]]], told: Told) -> None:
    fork = get_context("fork")  # for what the members hold is not for sending
    lines: dict[Connection, tuple[int, list[Member]]] = {}
    processes = []
    try:
        for share in shares:
            near, far = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(share, far, [*lines, near]), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of the threads that the fork will not have: it needs none.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            processes.append(process)
            far.close()
            lines[near] = len(processes) - 1, [member for group in share for member in group]
        while lines:
            for line in wait(list(lines)):
                assert isinstance(line, Connection)
                number, members = lines[line]
                try:
                    news = pickle.loads(line.recv_bytes())
                except EOFError:
                    processes[number].join()
                    raise UserError(
                        f"hydra/launcher=fused: a process that trained {len(members)} networks "
                        f"died (exit code {processes[number].exitcode}), perhaps for want of "
                        "memory; OMP_NUM_THREADS=1 trains in one process, fewer jobs need less"
                    ) from None
                if isinstance(news, str):
                    raise RuntimeError(news)
                if isinstance(news, int):
                    told(news)
                    continue
                for member, outcome in zip(members, news, strict=True):
                    member.outcome = outcome
                del lines[line]
                line.close()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(share: Sequence[list[Member]], line: Connection, others: Sequence[Connection]) -> None:
    for other in others:  # so that the line breaks when the first process dies
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the first process that ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)

    def send(news: int | str | list[Outcome]) -> None:
        line.send_bytes(pickle.dumps(news))

    try:
        for group in share:
            Group(group).fit(send)
        send([member.outcome for group in share for member in group])
    except Exception:
        send(traceback.format_exc())
