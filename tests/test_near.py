"""Neighbourhoods by way of bfloat16: what every pair in float32 gives, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.metrics import near, neighbours

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles of few images, whichever processor the tests run on."""
    monkeypatch.setattr(near, "SIDE", 64)
    monkeypatch.setattr(neighbours, "MANY", 1)
    monkeypatch.setattr(neighbours, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(near, "slices", lambda n, size=64: (slice(i, min(i + size, n)) for i in range(0, n, size)))


def every_pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) squared distances in float32."""
    return np.stack([torch.from_numpy(row - b).square().sum(1).numpy() for row in a])


def expected(a: np.ndarray, b: np.ndarray, k: int, inclusive: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`held`, `recalled`, `covered` from all distances."""
    within = [np.sort(every_pair(x, x), axis=1)[:, k] for x in (a, b)]  # the first is the point itself
    far, inside = every_pair(a, b), np.less_equal if inclusive else np.less
    holds = inside(far, within[0][:, None])
    return holds.sum(0), inside(far, within[1]).any(1), holds.any(1)


def found(a: np.ndarray, b: np.ndarray, k: int, inclusive: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre = a.mean(0, dtype=np.float64)
    first, second = near.Rough(a, centre), near.Rough(b, centre)
    return near.membership(first, second, near.radii(first, k), near.radii(second, k), inclusive)


def spread(rng: np.random.Generator) -> Pair:
    return rng.standard_normal((150, 96), np.float32), 1.1 * rng.standard_normal((130, 96), np.float32) + np.float32(0.1)


def far_from_the_origin(rng: np.random.Generator) -> Pair:
    return (spread(rng)[0] + np.float32(30), spread(rng)[1] + np.float32(30))


def few_directions(rng: np.random.Generator) -> Pair:
    basis = rng.standard_normal((6, 96), np.float32)
    return tuple((rng.standard_normal((n, 6), np.float32) @ basis) * np.exp(rng.normal(0, 0.5, (n, 1))).astype(np.float32)
                 for n in (150, 130))  # fmt: skip


def copies(rng: np.random.Generator) -> Pair:
    """Points on the rims of balls and on centres: generated images that are real ones, and some twice."""
    a, b = spread(rng)
    return a, np.concatenate([a[:60], b[:40], b[:10]])


@pytest.mark.parametrize("draw", [spread, far_from_the_origin, few_directions, copies])
@pytest.mark.parametrize(("k", "inclusive"), [(3, True), (5, False)])
def test_it_is_what_all_pairs_give(draw: Callable[..., Pair], k: int, inclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_ROWS", 1.0)
    monkeypatch.setattr(near, "MOST_PAIRS", 1.0)
    for seed in range(3):
        a, b = draw(np.random.default_rng(seed))
        for one, other in zip(found(a, b, k, inclusive), expected(a, b, k, inclusive), strict=True):
            np.testing.assert_array_equal(one, other)


def test_few_pairs_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features that are spread; that is the whole gain."""
    counted: list[int] = []
    measured = near.measured
    monkeypatch.setattr(near, "measured", lambda a, i, b, j: (counted.append(len(i)), measured(a, i, b, j))[1])
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((600, 512), np.float32) for _ in range(2))
    found(a, b, 3, True)
    assert sum(counted) < 0.1 * 3 * 600**2


@given(st.integers(0, 2**32 - 1), st.floats(0, 50), st.floats(0.01, 100))
def test_bounds_hold_every_distance(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.float32(scale) * (rng.standard_normal((n, 40), np.float32) + np.float32(shift)) for n in (30, 20))
    first, second = (near.Rough(x, a.mean(0, dtype=np.float64)) for x in (a, b))
    exact = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(2)
    for rows, columns, low in near.bounds(first, second):
        norms = first.norms[rows, None] + second.norms[columns]
        high = near.upper(low, norms, near.width(first, second))
        room = 1e-6 * norms.numpy()  # of float32, in which the bounds are added up
        assert (low.numpy() <= exact[rows, columns] + room).all()
        assert (high.numpy() >= exact[rows, columns] - room).all()


@pytest.mark.parametrize("count", [1, 7, 128, 300])
def test_a_pair_has_one_distance(count: int) -> None:
    """The same bits in whatever company and in either order, so that points on a rim stay there."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 2048), np.float32)
    y = rng.standard_normal((count, 2048), np.float32)
    each = torch.arange(count)
    together = near.measured(x, each, y, each)
    alone = torch.cat([near.measured(x, each[i : i + 1], y, each[i : i + 1]) for i in range(count)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    torch.testing.assert_close(together, near.measured(y, each, x, each), rtol=0, atol=0)
    assert near.measured(x, each, x, each).count_nonzero() == 0


def test_tight_clusters_far_apart_take_the_long_way() -> None:
    """There bfloat16 says nothing; `neighbours` gives the numbers of float64."""
    rng = np.random.default_rng(0)
    places = 100 * rng.standard_normal((3, 64))
    a, b = ((places[rng.integers(0, 3, 300)] + 1e-2 * rng.standard_normal((300, 64))).astype(np.float32) for _ in range(2))
    with pytest.raises(near.TooClose):
        found(a, b, 3, True)
    right = neighbours.neighbours(a, b, 3, dtype=torch.float64)
    assert neighbours.neighbours(a, b, 3, dtype=None) == right
    assert 0 < right.precision < 1


def test_one_way_or_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large sets of float32 on a processor that is made for it; all others as before, with the same numbers."""
    a, b = spread(np.random.default_rng(0))
    calls: list[int] = []
    membership = near.membership
    monkeypatch.setattr(near, "membership", lambda *x: (calls.append(1), membership(*x))[1])
    sooner = neighbours.neighbours(a, b, 3, dtype=None)
    assert len(calls) == 1
    assert neighbours.neighbours(a.astype(np.float64), b, 3, dtype=None) == sooner
    monkeypatch.setattr(neighbours, "MANY", 140)
    assert neighbours.neighbours(a, b, 3, dtype=None) == sooner
    monkeypatch.setattr(neighbours, "MANY", 1)
    monkeypatch.setattr(neighbours, "fast_bfloat16", lambda: False)
    assert neighbours.neighbours(a, b, 3, dtype=None) == sooner == neighbours.neighbours(a, b, 3)
    assert len(calls) == 1
