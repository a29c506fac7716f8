"""Places for caches that run together: the batch of buffers that graphs write into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet, WeakValueDictionary


class Placed(Protocol):
    """A cache in a slot."""

    lengths: list[int]

    @property
    def pool(self) -> Any:
        """Whose slot it has."""
        ...


PlacedT = TypeVar("PlacedT", bound=Placed)


class Slots(Generic[PlacedT]):
    """Slots of one batch, each taken by a cache for as long as it lives.

    Args:
        count: B.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._caches: WeakValueDictionary[int, PlacedT] = WeakValueDictionary()
        self._taken: set[int] = set()

    @property
    def vacant(self) -> int:
        """How many caches may enter."""
        return self.count - len(self._caches)

    def enter(self, cache: PlacedT) -> int:
        """The first slot that is free, taken."""
        slot = next(i for i in range(self.count) if i not in self._caches)
        if slot in self._taken:
            self.clear(slot)
        self._taken.add(slot)
        self._caches[slot] = cache
        return slot

    def leave(self, slot: int) -> None:
        """The cache that was there has gone to another pool."""
        self._caches.pop(slot, None)

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: an unfilled row gets weight zero, but 0 × NaN is NaN."""

    def filled(self) -> list[int]:
        """Tokens in each slot; none where no cache is."""
        caches = [self._caches.get(slot) for slot in range(self.count)]
        return [max(cache.lengths) if cache is not None else 0 for cache in caches]


SlotsT = TypeVar("SlotsT", bound=Slots[Any])


def with_room(slots: WeakSet[SlotsT], make: Callable[[], SlotsT]) -> SlotsT:
    """One of these that a cache may enter, or a new one, which is held for as long as a cache of it lives."""
    found = next((each for each in slots if each.vacant), None) or make()
    slots.add(found)
    return found


def moves(caches: Sequence[PlacedT], most: int) -> list[tuple[PlacedT, Any]]:
    """Which caches are to go to which pool, so that those of few pools run together. The list is empty where moving would save no run.

    Caches that rest stay where they are, and so gather apart from those that run.
    """
    by_pool: dict[int, list[PlacedT]] = {}
    for cache in caches:
        by_pool.setdefault(id(cache.pool), []).append(cache)
    groups = sorted(by_pool.values(), key=len)
    vacant = {id(group[0].pool): group[0].pool.vacant for group in groups}
    found: list[tuple[PlacedT, Any]] = []
    while len(groups) > -(-len(caches) // most):
        leaving, *groups = groups
        room = [group[0].pool for group in reversed(groups) for _ in range(vacant[id(group[0].pool)])]
        if len(room) < len(leaving):
            break
        for cache, pool in zip(leaving, room, strict=False):
            vacant[id(pool)] -= 1
            found.append((cache, pool))
    return found


def starts(slots: Slots[Any], active: Sequence[int], count: int, rows: int) -> tuple[list[int], list[int]]:
    """Where a graph that writes `count` rows into every slot of a buffer is to begin.

    Returns:
        The row for each slot: after those that are filled, and where a slot that takes no part has no room, among them; and the
        slots whose last `count` rows must be put back for that.
    """
    filled = slots.filled()
    crowded = [slot for slot, n in enumerate(filled) if slot not in active and n + count > rows]
    return [min(n, rows - count) for n in filled], crowded
