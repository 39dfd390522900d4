"""The ends of a stack's jobs: each as of a run by itself, shared out among processes."""

import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from perceptrail import recorder
from perceptrail.fused.member import Member
from perceptrail.fused.run import finish
from perceptrail.fused.sharing import Send, able, apart
from perceptrail.search.jobs import as_job, run_job, unfinished

OURS = {"validate", "passwords"}  # Hydra's callbacks that may be called in any process

Jobs = Mapping[int, tuple[DictConfig, Member]]  # by their places


class _Ended(NamedTuple):
    """What a job returned, or raised, what it printed, and what it had recorded."""

    place: int
    status: JobStatus
    returned: Any
    text: str
    messages: dict[recorder.Place, list[recorder.Message]]


def end(
    jobs: Jobs, *, context: HydraContext, start: float, processes: int | None
) -> dict[int, JobReturn]:
    """Have trained jobs leave what they would have left alone; what each returned.

    They are shared out where their training could be, if that is faster, unless a store is to
    answer or a callback of Hydra's, which is not our own, is to hear of them. `start` is when the
    launching began.
    """

    def run(place: int) -> JobReturn:
        config, member = jobs[place]
        return run_job(
            config, function=partial(finish, member=member, start=start), context=context
        )

    count = processes or torch.get_num_threads()
    divided = [place for place in jobs if _is_apart(*jobs[place])] if able(count) else []
    divided = divided if len(divided) > 1 else []
    done = {place: run(place) for place in sorted(jobs.keys() - divided)}
    order, ended = deque(divided), dict[int, _Ended]()

    def received(share: Sequence[int], news: _Ended) -> None:
        recorder.forward(news.messages)
        ended[news.place] = news
        while order and order[0] in ended:
            own = ended.pop(order.popleft())
            sys.stdout.write(own.text)
            with as_job(jobs[own.place][0]) as hidden:
                job = done[own.place] = unfinished(jobs[own.place][0], hidden)
            job.return_value, job.status = own.returned, own.status

    shares = [share for k in range(count) if (share := divided[k::count])]
    apart(shares, partial(_end, run=run), received, does=_ending)
    return done


def _is_apart(config: DictConfig, member: Member) -> bool:
    # Without figures to draw, the process that records takes longest; others would hinder it.
    uri = member.store
    recorded = uri is not None and (uri.startswith("http") or not config.figures)
    return not (member.pruning or recorded or set(config.hydra.callbacks) - OURS)


def _end(share: Sequence[int], send: Send, *, run: Callable[[int], JobReturn]) -> None:
    stops: list[int] = []  # signals to stop, once the job under way has been sent
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    for place in share:
        if stops:
            return
        text = StringIO()
        with redirect_stdout(text), recorder.held() as messages:
            job = run(place)
        returned = job._return_value
        if job.status == JobStatus.FAILED:
            returned = _sendable(returned)
        send(_Ended(place, job.status, returned, text.getvalue(), messages))


def _ending(share: Sequence[int]) -> str:
    return f"ended {len(share)} jobs"


def _sendable(error: Exception) -> Exception:
    """An error, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
