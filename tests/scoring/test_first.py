"""How likely each is the best: against its promise between equals, and against probabilities worked out by hand."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from flare_ds.scoring.first import firsts
from flare_ds.scoring.sureness import of_languages

LANGUAGES, ROWS = 6, 60


def differences(rng, methods, seeds, *, of_seed, of_row, left):
    """Of lora (nothing) and of methods that are as good: a seed's luck is the same in all languages, as is a row's."""
    tables = [np.zeros((seeds, ROWS))]
    names = [str(row) for row in range(ROWS)]
    for _ in range(methods):
        both = of_seed * rng.standard_normal((seeds, 1)) + of_row * rng.standard_normal(ROWS)
        each = [both + left * rng.standard_normal((seeds, ROWS)) for _ in range(LANGUAGES)]
        tables.append(of_languages(each, [names] * LANGUAGES, dict.fromkeys(names, 0)))
    return tables


@pytest.mark.parametrize(
    ("methods", "seeds", "of_seed", "of_row", "left"),
    [(1, 5, 0.05, 0.0, 0.1), (1, 5, 0.02, 0.2, 0.3), (3, 6, 0.05, 0.1, 0.1)],
)
def test_it_is_seldom_sure_of_one_of_several_equals(methods, seeds, of_seed, of_row, left):
    """More than 95 % for either of two that are equal: once in ten experiments, if it is right."""
    rng = np.random.default_rng(1)
    sure = [
        firsts(differences(rng, methods, seeds, of_seed=of_seed, of_row=of_row, left=left), range(ROWS)).max() > 0.95
        for _ in range(500)
    ]
    assert np.mean(sure) <= 0.125


def test_a_share_is_the_probability_that_t_gives_where_seeds_alone_differ():
    by_seed = np.array([0.1, 0.3, 0.2, -0.1, 0.05])
    table = np.tile(by_seed[:, None], 20)
    better = stats.ttest_1samp(by_seed, 0, alternative="less").pvalue
    assert firsts([np.zeros_like(table), table], range(20)) == pytest.approx([1 - better, better], abs=0.015)


def test_a_share_is_the_probability_that_the_normal_gives_where_rows_alone_differ():
    """Of clusters, which count and not their rows."""
    of_cluster = np.random.default_rng(2).normal(0.1, 1, 40)
    table = np.tile(np.repeat(of_cluster, 5), (5, 1))
    better = stats.norm.cdf(of_cluster.mean() / stats.sem(of_cluster))
    shares = firsts([np.zeros_like(table), table], np.repeat(range(40), 5))
    assert 0.6 < better < 0.99 and shares == pytest.approx([1 - better, better], abs=0.015)


def test_the_same_seeds_and_rows_are_drawn_for_all():
    """One that is a little better on every row is first, however much seeds and rows differ."""
    table = np.random.default_rng(3).normal(0, 1, (5, 200))
    assert firsts([np.zeros_like(table), table, table + 0.01], range(200))[1] == 0


def test_many_rows_take_no_more_memory_than_they_are():
    """A bootstrap of 100,000 rows would hold thousands of numbers for each."""
    values = np.random.default_rng(4).normal(0, 1, (2, 5, 100_000))
    tracemalloc.start()
    firsts(list(values), np.arange(100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * values.nbytes
