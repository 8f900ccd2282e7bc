# SPDX-License-Identifier: Apache-2.0
"""Threads that exist only when there is something for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from erofs_edge.threads import Background, Threads, ahead


def test_one_thing_after_the_other_and_its_error() -> None:
    done: list[str] = []
    one = Background("test-background")
    one.wait()  # nothing was begun
    for name in ("a", "b"):
        one.start(lambda name=name: done.append(f"{name} {threading.current_thread().name}"))  # type: ignore[misc]
        one.wait()
    assert done == ["a test-background", "b test-background"]

    def fail() -> None:
        raise ValueError("in the thread")

    one.start(fail)
    with pytest.raises(ValueError, match="in the thread"):
        one.wait()
    one.wait()  # it was told once
    one.start(lambda: done.append("c"))
    one.close()  # waits for what has begun
    one.close()
    assert done[2:] == ["c"]
    assert "test-background" not in {thread.name for thread in threading.enumerate()}


def test_an_error_nobody_waits_for_ends_with_the_thread() -> None:
    one = Background("test-background")
    one.start(lambda: 1 // 0)
    one.close()
    assert "test-background" not in {thread.name for thread in threading.enumerate()}


def test_a_pool_begins_with_the_first_task() -> None:
    before = threading.active_count()
    with Threads(2) as pool:
        assert threading.active_count() == before
        assert pool.submit(pow, 2, 5).result() == 32
        assert list(pool.map(str, range(5))) == list("01234")
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_one_step_ahead() -> None:
    """The next item is made while one is used; an error comes where its item would have."""
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number in range(3):
            made[number].set()
            yield number
        made[3].set()
        raise ValueError("in its turn")

    seen: list[int] = []

    def use() -> None:
        with Threads(1) as pool:
            for item in ahead(items(), pool):
                assert made[item + 1].wait(60)
                seen.append(item)

    with pytest.raises(ValueError, match="in its turn"):
        use()
    assert seen == [0, 1, 2]
    with Threads(1) as pool:
        assert list(ahead(iter([None, 0, ""]), pool)) == [None, 0, ""]
