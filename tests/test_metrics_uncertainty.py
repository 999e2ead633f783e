"""Error bars, the test of a difference, and the guard against comparing unlike things."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.protocol import Protocol, check_comparable, differences
from pagoda_bench.metrics.registry import METRICS
from pagoda_bench.metrics.settings import PROTOCOLS
from pagoda_bench.metrics.significance import FLOOR, FLOOR_LEAST, better, welch
from pagoda_bench.metrics.uncertainty import blocks, bootstrap_mean, over_blocks, summarise


def test_summary_of_three_blocks_and_of_one() -> None:
    found = summarise([2.0, 4.0, 3.0])
    assert found == pytest.approx((3, 2, 4, 1, 1 / 3**0.5, 3))
    assert summarise([5.0]) == (5, 5, 5, None, None, 1)
    assert over_blocks(lambda rows: float(rows.stop - rows.start), 10, 3) == summarise([3, 3, 4])


@settings(max_examples=30)
@given(n=st.integers(1, 300), count=st.integers(1, 300))
def test_blocks_are_disjoint_and_cover_all(n: int, count: int) -> None:
    if count > n:
        with pytest.raises(UserError, match="cannot be divided"):
            blocks(n, count)
        return
    found = blocks(n, count)
    assert [found[0].start, found[-1].stop, len(found)] == [0, n, count]
    assert all(a.stop == b.start for a, b in pairwise(found))
    assert {part.stop - part.start for part in found} <= {n // count, n // count + 1}


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    inside = np.arange(400) % 4 == 0
    found = bootstrap_mean(inside, draws=2000)
    assert found.value == 0.25
    assert found.stderr == pytest.approx((0.25 * 0.75 / 400) ** 0.5, rel=0.08)
    assert found.low < 0.25 - found.stderr < 0.25 + found.stderr < found.high
    assert found == bootstrap_mean(inside, draws=2000)
    assert found != bootstrap_mean(inside, draws=2000, seed=1)


def test_block_errors_cover_the_truth() -> None:
    """Of 300 means of five blocks, about 95 % are within the two-sided t-quantile times the standard error."""
    rng = np.random.default_rng(0)
    limit = scipy.stats.t.ppf(0.975, 4)
    found = [summarise(rng.normal(size=5)) for _ in range(300)]
    assert 0.92 < np.mean([abs(each.mean) < limit * (each.stderr or 0) for each in found]) < 0.98


def test_welch_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5), rng.normal(size=3) * 2 + 1
    expected = scipy.stats.ttest_ind(b, a, equal_var=False, alternative="greater").pvalue
    found = welch(float(b.mean() - a.mean()), (float(b.std(ddof=1)), 3), (float(a.std(ddof=1)), 5))
    assert found == pytest.approx(expected, rel=1e-10)
    assert better(b.tolist(), a.tolist(), larger_is_better=True).p == pytest.approx(expected, rel=1e-10)
    assert welch(1, (0, 2), (0, 2)) == 0
    assert welch(-1, (0, 2), (0, 2)) == 1
    assert welch(0, (0, 2), (0, 2)) == 0.5


def test_a_clear_gap_is_better_in_the_right_direction() -> None:
    low, high = [3.0, 3.05, 2.95], [4.0, 4.1, 3.9]
    assert better(low, high, larger_is_better=False).better
    assert not better(high, low, larger_is_better=False).better
    assert better(high, low, larger_is_better=True).better
    found = better(low, high, larger_is_better=False)
    assert (found.gap, found.relative) == pytest.approx((1, 0.25))
    assert "above the floor of 2 %" in found.why


def test_a_gap_below_the_noise_of_training_again_is_not_better() -> None:
    """1 % apart, with next to no sampling error."""
    a, b = [3.96, 3.9601, 3.9599], [4.0, 4.0001, 3.9999]
    found = better(a, b, larger_is_better=False)
    assert found.p is not None
    assert found.p < 1e-3
    assert not found.better
    assert "not above the floor of 2 %" in found.why
    assert better(a, b, larger_is_better=False, trainings=True).better  # then the blocks know that noise
    assert FLOOR_LEAST == 0.013
    assert FLOOR == 0.02


def test_noise_is_not_better_and_one_block_says_so() -> None:
    found = better([3.0, 5.0], [4.5, 4.4], larger_is_better=False)
    assert not found.better
    assert found.p is not None
    assert found.p > 0.05
    alone = better([3.0], [4.0, 4.1], larger_is_better=False)
    assert alone.better
    assert alone.p is None
    assert alone.why.startswith("n=1")
    assert not better([4.0], [4.05], larger_is_better=False).better
    assert better([1.0], [0.0], larger_is_better=True).relative == np.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [2.0, 3.0], True, 0.02, 0.05, True), "at least two of them"),
        (([], [2.0], True), "at least one"),
        (([np.nan], [2.0], True), "finite"),
        (([1.0], [2.0], True, 2.0), "must lie in"),
    ],
)
def test_bad_comparisons_are_one_line(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        better(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def protocol(preset: str = "torch-fidelity", metric: str = "fid", **fields: object) -> Protocol:
    common = {
        "extractor": "inception",
        "weights": "ab" * 32,
        "resize": "TF1 bilinear to 299",
        "resolution": 256,
        "reference": "cd" * 32,
        "reference_n": 50_000,
        "n": 50_000,
        "labels": "random",
        "rounding": "to nearest",
        **PROTOCOLS[preset].protocol(metric),
    }
    return Protocol.load({**common, **fields}).of(metric)


def test_unlike_scores_are_refused_with_all_that_differs() -> None:
    a, b = protocol(n=10_000, labels="uniform"), protocol()
    assert differences(a, b) == ["N 10,000 vs 50,000", "labels uniform vs random"]
    with pytest.raises(UserError, match=r"fid: .* differ: N 10,000 vs 50,000; labels uniform vs random$"):
        check_comparable(a, b, "fid")
    check_comparable(a, a, "fid")


def test_protocols_differ_where_their_metric_depends_on_it() -> None:
    """ADM and torch-fidelity agree on what FID is, and not on the Inception Score; dgm-eval has other neighbourhoods."""
    assert differences(protocol("adm"), protocol("torch-fidelity")) == []
    apart = differences(protocol("adm", "is"), protocol("torch-fidelity", "is"))
    assert apart == ["splits unset vs 10", "images a part 5,000 vs unset", "seed of the shuffle unset vs 2,020"]
    assert differences(protocol("adm", "recall"), protocol("dgm-eval", "recall")) == [
        "k of the neighbourhoods 3 vs 5",
        "points on the rim <= vs <",
    ]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_without_a_reference_does_not_depend_on_one(name: str) -> None:
    depends = differences(protocol(metric=name), protocol(metric=name, reference="ef" * 32)) != []
    assert depends == bool(METRICS[name].reference)
    assert Protocol.load(protocol(metric=name).to_dict()) == protocol(metric=name)
