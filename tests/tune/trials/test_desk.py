"""The desk's promises, asked without Ray: it is an ordinary asynchronous class behind its actor."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tune.trials import desk as module
from tune.trials.desk import _Desk

Scenario = Callable[[_Desk], Awaitable[Any]]


def play(scenario: Scenario) -> Any:
    async def run() -> Any:
        return await asyncio.wait_for(scenario(_Desk()), timeout=10)

    return asyncio.run(run())


def test_all_workers_of_a_group_get_the_same_jobs_in_order() -> None:
    async def scenario(desk: _Desk) -> list[Any]:
        early = asyncio.gather(desk.next_job("g", 0), desk.next_job("g", 0))
        await asyncio.sleep(0)
        assert await desk.assign("g", {"id": "a"})
        assert await desk.assign("g", {"id": "b"})
        return [*await early, await desk.next_job("g", 1), await desk.next_job("g", 1)]

    assert [job["id"] for job in play(scenario)] == ["a", "a", "b", "b"]


def test_idle_workers_end_together_and_take_no_job_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)

    async def scenario(desk: _Desk) -> None:
        assert await desk.next_job("g", 0) is None
        # A second worker that asks later must not get a job that the first one does not have.
        assert not await desk.assign("g", {"id": "a"})
        assert await desk.next_job("g", 0) is None

    play(scenario)


def test_closed_workers_end_after_the_jobs_that_they_have() -> None:
    async def scenario(desk: _Desk) -> None:
        assert await desk.assign("g", {"id": "a"})
        await desk.close("g")
        assert (await desk.next_job("g", 0)) == {"id": "a"}
        assert await desk.next_job("g", 1) is None

    play(scenario)


def test_workers_that_wait_are_released_and_those_at_work_are_not() -> None:
    async def scenario(desk: _Desk) -> None:
        for group in ("busy", "idle"):
            assert await desk.assign(group, {"id": group})
            assert await desk.next_job(group, 0)
        waiting = asyncio.ensure_future(desk.next_job("idle", 1))
        await asyncio.sleep(0)
        await desk.release()
        assert await asyncio.wait_for(waiting, timeout=1) is None
        assert not await desk.assign("idle", {"id": "late"})
        assert await asyncio.wait_for(desk.next_job("busy", 1), timeout=1) is None  # done only now

    play(scenario)


def test_a_new_job_after_a_release_is_waited_for_again() -> None:
    async def scenario(desk: _Desk) -> None:
        assert await desk.assign("g", {"id": "a"})
        await desk.release()
        assert await desk.assign("g", {"id": "b"})
        assert await desk.next_job("g", 1) == {"id": "b"}
        waiting = asyncio.ensure_future(desk.next_job("g", 2))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await desk.assign("g", {"id": "c"})
        assert await waiting == {"id": "c"}

    play(scenario)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_report_waits_for_its_own_decision(goes_on: bool) -> None:
    async def scenario(desk: _Desk) -> None:
        mine = asyncio.ensure_future(desk.report("a", {"step": 2}))
        other = asyncio.ensure_future(desk.report("b", {"step": 2}))
        assert await desk.next_message("a") == {"step": 2}
        await desk.decide("a", goes_on)
        assert await mine == goes_on
        assert not other.done()
        await desk.decide("b", True)
        assert await other

    play(scenario)


def test_messages_of_a_job_do_not_reach_another_one() -> None:
    async def scenario(desk: _Desk) -> None:
        await desk.tell("a", {"done": True})
        later = asyncio.ensure_future(desk.next_message("b"))
        await asyncio.sleep(0.01)
        assert not later.done()
        await desk.tell("b", {"step": 1})
        assert await later == {"step": 1}
        assert await desk.next_message("a") == {"done": True}

    play(scenario)


def test_an_interruption_is_told_to_who_asked_before_and_after() -> None:
    async def scenario(desk: _Desk) -> None:
        early = asyncio.ensure_future(desk.interruption())
        await asyncio.sleep(0.01)
        assert not early.done()
        await desk.interrupt()
        await early
        await desk.interruption()

    play(scenario)


def test_what_is_forgotten_is_gone() -> None:
    async def scenario(desk: _Desk) -> None:
        report = asyncio.ensure_future(desk.report("a", {}))
        await desk.next_message("a")
        await desk.decide("a", True)
        await report
        await desk.forget("a")
        assert not desk._messages
        assert not desk._decisions

    play(scenario)
