"""Group commit: what came in meanwhile goes to the disk together; each has its own outcome; a flood is refused."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from certs.store import writer as writing
from certs.store.store import Operation, Store, StoreUnavailableError, Transaction, file_url, opened
from certs.store.writer import MOST_TOGETHER, MOST_WAITING, Writer
from tests.beds.clock import Clock
from tests.beds.patience import PATIENCE


class HeldStore(Store):
    """A real store, whose disk is busy until it is let go; ``together`` says how many came in each transaction."""

    def __init__(self, path: Path) -> None:
        super().__init__(file_url(path), clock=Clock().seconds)
        self.together: list[int] = []
        self.free = threading.Event()
        self.entered = threading.Event()
        self.fault: Exception | None = None

    def write_many(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.together.append(len(operations))
        self.entered.set()
        assert self.free.wait(PATIENCE)
        if self.fault is not None:
            raise self.fault
        return super().write_many(operations)


@asynccontextmanager
async def writing_to(store: Store) -> AsyncIterator[tuple[Writer, trio.Nursery]]:
    writer = Writer(store)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield writer, nursery
            nursery.cancel_scope.cancel()


def put(key: str) -> Operation[str]:
    def operation(transaction: Transaction) -> str:
        transaction.put(key, "x")
        return key

    return operation


def has(key: str) -> Operation[bool]:
    return lambda transaction: transaction.get(key) is not None


@pytest.fixture
def held(tmp_path: Path) -> HeldStore:
    return HeldStore(tmp_path / "store.db")


async def gather(*calls: Callable[[], Any]) -> list[Any]:
    """All at once; what each returned or raised."""
    outcomes: list[Any] = [None] * len(calls)

    async def one(at: int) -> None:
        try:
            outcomes[at] = await calls[at]()
        except Exception as error:
            outcomes[at] = error

    async with trio.open_nursery() as nursery:
        for at in range(len(calls)):
            nursery.start_soon(one, at)
    return outcomes


async def test_an_operation_s_result_comes_when_it_is_on_the_disk(tmp_path: Path) -> None:
    url = file_url(tmp_path / "store.db")
    with opened(url, clock=Clock().seconds) as store, opened(url, clock=Clock().seconds) as another:
        async with writing_to(store) as (writer, _):
            assert await writer.write(put("a")) == "a"
            assert another.write(has("a"))


async def test_what_it_raises_is_raised_to_its_caller_and_nobody_else(tmp_path: Path) -> None:
    def fail(_transaction: Transaction) -> None:
        raise LookupError("mine")

    with opened(file_url(tmp_path / "store.db"), clock=Clock().seconds) as store:
        async with writing_to(store) as (writer, _):
            outcomes = await gather(
                lambda: writer.write(put("a")), lambda: writer.write(fail), lambda: writer.write(put("b"))
            )
            assert outcomes[0::2] == ["a", "b"]
            assert isinstance(outcomes[1], LookupError)
            assert await writer.write(has("b")), "and the writer goes on"


async def test_what_comes_while_the_disk_is_busy_goes_to_it_together(held: HeldStore) -> None:
    async with writing_to(held) as (writer, nursery):
        nursery.start_soon(writer.write, put("first"))
        await trio.to_thread.run_sync(held.entered.wait, PATIENCE)
        for number in range(40):
            nursery.start_soon(writer.write, put(f"key {number}"))
        await trio.testing.wait_all_tasks_blocked()
        held.free.set()
        assert await writer.write(has("key 39"))
    assert held.together[0] == 1
    assert held.together[1] in (40, 41)
    held.close()


async def test_and_no_more_than_so_many(held: HeldStore) -> None:
    async with writing_to(held) as (writer, nursery):
        nursery.start_soon(writer.write, put("first"))
        await trio.to_thread.run_sync(held.entered.wait, PATIENCE)
        for number in range(MOST_TOGETHER + 10):
            nursery.start_soon(writer.write, put(f"key {number}"))
        await trio.testing.wait_all_tasks_blocked()
        held.free.set()
        await writer.write(has("first"))
    assert held.together[1] == MOST_TOGETHER
    held.close()


async def test_a_flood_is_refused_at_once_and_those_before_it_are_served(held: HeldStore) -> None:
    async with writing_to(held) as (writer, nursery):
        nursery.start_soon(writer.write, put("first"))
        await trio.to_thread.run_sync(held.entered.wait, PATIENCE)
        for _ in range(MOST_WAITING):
            nursery.start_soon(writer.write, has("first"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailableError, match=f"{MOST_WAITING} requests are already waiting for the store"):
            await writer.write(put("too many"))
        held.free.set()
        while held.together[1:] == [] or sum(held.together) < 1 + MOST_WAITING:
            await trio.testing.wait_all_tasks_blocked(
                0.01
            )  # a loop without a pause would keep the store's thread from work
        assert not await writer.write(has("too many"))
        assert await writer.write(put("later")) == "later"
    held.close()


@pytest.mark.parametrize("fault", [StoreUnavailableError("the disk is full"), RuntimeError("a bug of ours")])
async def test_a_store_that_fails_is_told_to_all_who_waited_and_the_next_are_served(
    held: HeldStore, fault: Exception
) -> None:
    held.free.set()
    async with writing_to(held) as (writer, _):
        held.fault = fault
        outcomes = await gather(*(lambda: writer.write(put("a")) for _ in range(5)))
        assert outcomes == [fault] * 5
        held.fault = None
        assert not await writer.write(has("a"))
        assert await writer.write(put("a")) == "a"
    held.close()


async def test_a_caller_that_went_away_hinders_nobody(held: HeldStore) -> None:
    async with writing_to(held) as (writer, nursery):
        with trio.CancelScope() as gone:
            nursery.start_soon(writer.write, put("first"))
            await trio.to_thread.run_sync(held.entered.wait, PATIENCE)
            gone.cancel()
            await writer.write(put("gone"))
        assert gone.cancelled_caught
        held.free.set()
        assert await writer.write(put("next")) == "next"
        assert await writer.write(has("gone")), "it is written all the same: its answer is lost, as any answer can be"
    held.close()


async def test_only_one_thread_writes(tmp_path: Path) -> None:
    assert writing._ONE.total_tokens == 1
