"""The order in which queries are taken, such that what is there first is a sample of all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from random import Random


def seeded_order(strata: Sequence[Hashable], seed: int) -> list[int]:
    """The indices of `strata` in a random order of which every prefix is spread over the strata in proportion to their sizes.

    A stratum that is a tuple is nested: a prefix is spread over the first parts, within each of these over the second, and
    so on, as with (task, split, principle). Systematic sampling (Madow and Madow 1944): item j of a stratum of N, in random
    order, has the place (j + start) / N, and the starts of the strata are evenly spaced from a random offset, so that every
    index is as likely as any other to have a place below any limit. Among strata of equal size a prefix takes equally many
    of each, or one more.

    The order depends on `strata` and `seed` alone: `Random.random` gives the same numbers in every version of Python.
    """
    rng = Random(seed)
    paths = [stratum if isinstance(stratum, tuple) else (stratum,) for stratum in strata]

    def shuffled(items: Iterable[int]) -> list[int]:
        return [item for _, item in sorted((rng.random(), item) for item in items)]

    def spread(indices: Sequence[int], depth: int) -> list[int]:
        groups: dict[Hashable, list[int]] = {}
        for i in indices:
            groups.setdefault(paths[i][depth : depth + 1], []).append(i)
        if list(groups) == [()]:
            return shuffled(indices)
        ordered = [spread(group, depth + 1) for group in groups.values()]
        offset, places = rng.random(), []
        for rank, k in enumerate(shuffled(range(len(ordered)))):
            start, size = (rank + offset) / len(ordered), len(ordered[k])
            places += [((j + start) / size, i) for j, i in enumerate(ordered[k])]
        return [i for _, i in sorted(places)]

    return spread(range(len(paths)), 0) if paths else []
