"""Where a search meets its trials' workers: one small asynchronous actor through which all that they say passes.

    driver --- starts a Tune trial on a lane ---> lane (``tune.trials.lane``) --- assign ---> desk
    workers of the lane --- next_job, report, tell ---> desk --- next_message ---> lane ---> Tune ---> driver
    driver --- decide, interrupt ---> desk ---> workers

A job is one attempt of a trial. Its messages are dicts: an evaluation, or with ``done`` how it ended.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

IDLE_SECONDS = 3.0
"""Workers that have had no job for so long end, whoever forgot them: others may want their CPUs and GPUs."""

Message = dict[str, Any]


class _Group:
    """A worker group's jobs so far; once closed it takes no more."""

    def __init__(self) -> None:
        self.jobs: list[Message] = []
        self.done = 0
        self.closed = False
        self.changed = asyncio.Condition()


class _Desk:
    """All methods that wait do so without holding up the others."""

    def __init__(self) -> None:
        self._groups: defaultdict[str, _Group] = defaultdict(_Group)
        self._messages: defaultdict[str, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self._decisions: dict[str, asyncio.Future[bool]] = {}
        self._released = False
        self._interrupted = asyncio.Event()

    async def assign(self, group: str, job: Mapping[str, Any]) -> bool:
        """The group's workers are to do this job next. Returns whether they will: not if they are about to end."""
        state = self._groups[group]
        async with state.changed:
            if not state.closed:
                self._released = False
                state.jobs.append(dict(job))
                state.changed.notify_all()
            return not state.closed

    async def close(self, group: str) -> None:
        """The group's workers end as soon as they have no job."""
        state = self._groups[group]
        async with state.changed:
            state.closed = True
            state.changed.notify_all()

    async def release(self) -> None:
        """There is nothing to do until the next job is assigned: workers without one end at once."""
        self._released = True
        for group, state in self._groups.items():
            if state.done == len(state.jobs):
                await self.close(group)

    async def next_job(self, group: str, done: int) -> Message | None:
        """The job after ``done`` others, the same for all workers of a group; None: there will be none."""
        state = self._groups[group]
        state.done = done
        async with state.changed:
            try:
                async with asyncio.timeout(0 if self._released else IDLE_SECONDS):
                    await state.changed.wait_for(lambda: len(state.jobs) > done or state.closed)
            except TimeoutError:
                state.closed = True
                state.changed.notify_all()
        return state.jobs[done] if len(state.jobs) > done else None

    async def tell(self, job: str, message: Mapping[str, Any]) -> None:
        """Something about a job that nobody has to answer."""
        await self._messages[job].put(dict(message))

    async def report(self, job: str, message: Mapping[str, Any]) -> bool:
        """An evaluation; returns the search's decision: whether the trial goes on."""
        self._decisions[job] = asyncio.get_running_loop().create_future()
        await self.tell(job, message)
        return await self._decisions[job]

    async def next_message(self, job: str) -> Message:
        """What is told next of a job."""
        return await self._messages[job].get()

    async def decide(self, job: str, goes_on: bool) -> None:
        """The answer to a job's report."""
        if not self._decisions[job].done():
            self._decisions[job].set_result(goes_on)

    async def forget(self, job: str) -> None:
        """Nobody asks for a job's messages any more."""
        self._messages.pop(job, None)
        self._decisions.pop(job, None)

    async def interrupt(self) -> None:
        """All workers are to save a checkpoint and end their jobs."""
        self._interrupted.set()

    async def interruption(self) -> None:
        """Returns when the search is interrupted."""
        await self._interrupted.wait()


def open_desk() -> ActorHandle[Any]:
    """A search's desk, on its driver's own node: the loss of any other node leaves it be."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: ActorHandle[Any] = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
    return desk
