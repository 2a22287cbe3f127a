"""Sureness: against slow formulas written out, and against its promise: 95 % intervals hold in 95 % of draws."""

import itertools

import numpy as np
import pytest
from scipy import stats

from flare_ds.scoring.metrics import contributions, score
from flare_ds.scoring.sureness import (
    Sureness,
    holm,
    of_languages,
    over_drawn_languages,
    over_seeds,
    over_seeds_and_rows,
)


def drawn(rng, seeds, rows, *, of_seed, of_row, left, size=1):
    """Tables of contributions whose true mean is zero."""
    return (
        of_seed * rng.standard_normal((size, seeds, 1))
        + of_row * rng.standard_normal((size, 1, rows))
        + left * rng.standard_normal((size, seeds, rows))
    )


def over_languages(tables, rows, clusters: dict[str, int]) -> Sureness:
    return over_seeds_and_rows(of_languages(tables, rows, clusters), list(clusters.values()))


def holds(sureness: Sureness) -> bool:
    lo, hi = sureness.interval
    return lo <= 0 <= hi


def test_the_error_is_the_analysis_of_variance_written_out():
    table = drawn(np.random.default_rng(1), 3, 40, of_seed=0.2, of_row=0.3, left=0.1)[0] + 0.5
    seeds, rows = table.shape
    cells = list(itertools.product(range(seeds), range(rows)))
    mean = sum(table[cell] for cell in cells) / len(cells)
    seed_means = [sum(table[s]) / rows for s in range(seeds)]
    row_means = [sum(table[:, n]) / seeds for n in range(rows)]
    ms_seed = rows * sum((m - mean) ** 2 for m in seed_means) / (seeds - 1)
    ms_row = seeds * sum((m - mean) ** 2 for m in row_means) / (rows - 1)
    squares = sum((table[s, n] - seed_means[s] - row_means[n] + mean) ** 2 for s, n in cells)
    ms_left = squares / ((seeds - 1) * (rows - 1))
    total = ms_seed + ms_row - ms_left
    freedom = total**2 / (ms_seed**2 / (seeds - 1) + ms_row**2 / (rows - 1) + ms_left**2 / ((seeds - 1) * (rows - 1)))
    found = over_seeds_and_rows(table)
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx((total / (seeds * rows)) ** 0.5)
    assert found.freedom == pytest.approx(freedom)


def test_one_seed_and_the_seeds_alone_are_students_t():
    table = np.random.default_rng(2).normal(0.1, 1, (1, 50))
    one = stats.ttest_1samp(table[0], 0)
    assert over_seeds_and_rows(table).p == pytest.approx(one.pvalue)
    assert over_seeds_and_rows(table).interval == pytest.approx(tuple(one.confidence_interval()))
    means = np.random.default_rng(3).normal(0.1, 1, (4, 7))
    seeds = stats.ttest_1samp(means.mean(1), 0)
    assert over_seeds(means).p == pytest.approx(seeds.pvalue)
    assert over_seeds(means).interval == pytest.approx(tuple(seeds.confidence_interval()))


@pytest.mark.parametrize(
    ("seeds", "rows", "of_seed", "of_row", "left"),
    [(1, 300, 0.0, 0.3, 0.3), (3, 400, 0.01, 0.3, 0.3), (5, 400, 0.02, 0.1, 0.4), (5, 1000, 0.03, 0.3, 0.3)],
)
def test_an_interval_over_seeds_and_rows_holds_as_often_as_it_says(seeds, rows, of_seed, of_row, left):
    rng = np.random.default_rng(4)
    tables = (drawn(rng, seeds, rows, of_seed=of_seed, of_row=of_row, left=left)[0] for _ in range(3000))
    assert 0.93 <= np.mean([holds(over_seeds_and_rows(table)) for table in tables]) <= 0.97


@pytest.mark.parametrize(
    ("seeds", "share", "least", "most"),
    [(2, 0.0, 0.95, 0.98), (2, 0.9, 0.86, 0.9), (3, 0.5, 0.92, 0.96), (3, 0.9, 0.91, 0.94), (4, 0.9, 0.92, 0.95)],
)
def test_where_few_seeds_make_most_of_the_variance_an_interval_holds_as_often_as_the_page_says(
    seeds, share, least, most
):
    """docs/report.md: in 87 to 98 % of draws with two seeds, in 92 to 97 % with three or four."""
    rng, of_rows = np.random.default_rng(18), (1 + 1 / seeds) / 400
    of_seed = np.sqrt(seeds * of_rows * share / (1 - share))
    tables = (drawn(rng, seeds, 400, of_seed=of_seed, of_row=1, left=1)[0] for _ in range(2500))
    assert least <= np.mean([holds(over_seeds_and_rows(table)) for table in tables]) <= most


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_over_seeds_holds_as_often_as_it_says(seeds):
    tables = drawn(np.random.default_rng(5), seeds, 20, of_seed=0.3, of_row=0.0, left=0.1, size=4000)
    assert 0.93 <= np.mean([holds(over_seeds(table)) for table in tables]) <= 0.97


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.93), (3, 0.91), (4, 0.89)])
def test_the_seeds_alone_say_less_of_other_rows(seeds, share):
    """Seeds make half of the variance of the mean, as in docs/report.md, and all of them read the same row."""
    tables = drawn(np.random.default_rng(19), seeds, 1, of_seed=seeds**0.5, of_row=1, left=0, size=4000)
    assert np.mean([holds(over_seeds(table)) for table in tables]) == pytest.approx(share, abs=0.01)


def test_an_interval_over_clusters_holds_where_rows_of_one_belong_together():
    """100 paragraphs of 1 to 7 questions; taken for so many rows, they would seem far surer than they are."""
    rng = np.random.default_rng(6)
    sizes = rng.integers(1, 8, 100)
    clusters = np.repeat(np.arange(100), sizes)
    of_paragraph, of_row = [], []
    for _ in range(2000):
        table = np.repeat(rng.standard_normal(100) * 0.4, sizes) + rng.standard_normal((3, sizes.sum())) * 0.3
        of_paragraph.append(holds(over_seeds_and_rows(table, list(clusters))))
        of_row.append(holds(over_seeds_and_rows(table)))
    assert 0.93 <= np.mean(of_paragraph) <= 0.97
    assert np.mean(of_row) < 0.85


def test_right_and_wrong_rows_are_no_worse_than_normal_ones():
    """Outcomes as they are: each row has its own difficulty, each seed its own skill."""
    rng = np.random.default_rng(7)
    held = []
    for _ in range(2000):
        difficulty = rng.normal(0, 1.2, 400)
        skills = rng.normal(1.0, 0.05, (2, 3, 1))  # of two methods that are equally good
        right = rng.random((2, 3, 400)) < 1 / (1 + np.exp(difficulty - skills))
        held.append(holds(over_seeds_and_rows(right[0].astype(float) - right[1])))
    assert 0.93 <= np.mean(held) <= 0.975


def test_a_mean_over_languages_holds_as_often_as_it_says():
    rng = np.random.default_rng(8)
    held = []
    for _ in range(2000):
        tables = [drawn(rng, 3, 100, of_seed=0.02, of_row=0.3, left=0.2)[0] for _ in range(4)]
        rows = [[f"{language} {row}" for row in range(100)] for language in range(4)]
        held.append(holds(over_languages(tables, rows, numbered(rows))))
    assert 0.93 <= np.mean(held) <= 0.975


def test_a_mean_over_translations_of_the_same_rows_holds_as_often_as_it_says():
    """What makes a sentence hard makes its translations hard; taken for other rows, they would seem far surer."""
    rng = np.random.default_rng(13)
    names = [str(row) for row in range(120)]
    rows = [names, names[20:], names[:90], names[10:110]]
    apart = [[f"{language} {row}" for row in of] for language, of in enumerate(rows)]
    of_the_same, of_others = [], []
    for _ in range(1500):
        hardness = rng.normal(0, 0.3, 120)
        tables = [
            hardness[[int(row) for row in of]] + drawn(rng, 3, len(of), of_seed=0.01, of_row=0.1, left=0.2)[0]
            for of in rows
        ]
        of_the_same.append(holds(over_languages(tables, rows, numbered(rows))))
        of_others.append(holds(over_languages(tables, apart, numbered(apart))))
    assert 0.93 <= np.mean(of_the_same) <= 0.97
    assert np.mean(of_others) < 0.8


@pytest.mark.parametrize(
    ("languages", "seeds", "of_language", "of_seed", "of_row", "least"),
    [
        (5, 3, 0.02, 0.02, 0.4, 0.93),
        (5, 3, 0.02, 0.02, 0.0, 0.93),
        (5, 1, 0.02, 0.0, 0.4, 0.93),
        (3, 5, 0.02, 0.01, 0.3, 0.93),
        (2, 2, 0.02, 0.02, 0.4, 0.9),
    ],
)
def test_a_mean_over_drawn_languages_holds_where_what_moves_it_moves_all_of_them(
    languages, seeds, of_language, of_seed, of_row, least
):
    """A seed and a row in translation are one draw for all languages: no spread between these shows their luck."""
    rng = np.random.default_rng(17)
    held, by_the_spread = [], []
    for _ in range(1000):
        shared = drawn(rng, seeds, 400, of_seed=of_seed, of_row=of_row, left=0.1)[0]
        means = shared.mean() + rng.normal(0, of_language, languages)
        found = over_drawn_languages(list(means), over_seeds_and_rows(shared - shared.mean() + means.mean()))
        assert found.mean == pytest.approx(means.mean())
        held.append(holds(found))
        lo, hi = stats.ttest_1samp(means, 0).confidence_interval()
        by_the_spread.append(lo <= 0 <= hi)
    assert least <= np.mean(held) <= 0.98
    assert np.mean(by_the_spread) < 0.92


def test_drawn_languages_add_their_spread_to_what_is_known_of_these():
    """Variances add up, each with its freedom; of what nothing is known in these, nothing is in others."""
    means, in_these = [0.1, 0.2, 0.6], Sureness(0.3, 0.05, 2.5)
    of_languages = stats.sem(means) ** 2
    found = over_drawn_languages(means, in_these)
    assert found.error**2 == pytest.approx(0.05**2 + of_languages)
    assert found.freedom == pytest.approx((0.05**2 + of_languages) ** 2 / (0.05**4 / 2.5 + of_languages**2 / 2))
    assert over_drawn_languages(means, Sureness(0.3, 0.0, 0)).interval == (-np.inf, np.inf)


def test_a_mean_over_languages_is_their_mean_and_its_variance_that_of_the_sum():
    """One seed, rows partly shared: the variance of a weighted sum over rows, written out."""
    rng = np.random.default_rng(14)
    rows = [["a", "b", "c", "d"], ["c", "d", "e"]]
    tables = [rng.normal(0.2, 1, (1, len(of))) for of in rows]
    found = over_languages(tables, rows, numbered(rows))
    assert found.mean == pytest.approx(np.mean([table.mean() for table in tables]))
    shares = {
        row: sum(
            (table[0, of.index(row)] - table.mean()) / len(of) / 2
            for table, of in zip(tables, rows, strict=True)
            if row in of
        )
        for row in "abcde"
    }
    assert found.error**2 == pytest.approx(sum(share**2 for share in shares.values()) * 5 / 4)


def numbered(rows: list[list[str]]) -> dict[str, int]:
    """Each row a cluster of its own."""
    return {row: number for number, row in enumerate(dict.fromkeys(itertools.chain(*rows)))}


def test_the_smallest_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(9)
    tables = drawn(rng, 1, 200, of_seed=0, of_row=1, left=0, size=3000)
    findable = np.median([over_seeds_and_rows(table).findable for table in tables[:300]])
    found = np.mean([not holds(over_seeds_and_rows(table + findable)) for table in tables])
    assert 0.78 <= found <= 0.82


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_smallest_difference_is_found_four_times_in_five_by_few_seeds_too(seeds):
    tables = drawn(np.random.default_rng(15), seeds, 2, of_seed=1, of_row=0, left=0, size=4000)
    findable = Sureness(0, seeds**-0.5, seeds - 1).findable
    found = np.mean([over_seeds(table + findable).interval[0] > 0 for table in tables])
    assert 0.78 <= found <= 0.82


def test_clusters_of_one_row_are_rows_and_the_mean_is_that_over_rows():
    table = np.random.default_rng(10).normal(0, 1, (3, 30))
    assert over_seeds_and_rows(table, list(range(30))).error == pytest.approx(over_seeds_and_rows(table).error)
    assert over_seeds_and_rows(table, [4] * 25 + [7] * 3 + [5] * 2).mean == pytest.approx(table.mean())


@pytest.mark.parametrize(("seeds", "rows"), [(2, 2), (2, 3), (2, 6), (3, 4)])
def test_few_rows_that_disagree_give_no_certainty(seeds, rows):
    rng = np.random.default_rng(16)
    for table in [np.eye(seeds, rows), *rng.integers(-1, 2, (300, seeds, rows)).astype(float)]:
        found = over_seeds_and_rows(table)
        assert found.freedom >= 0.5 or (found.p == 1 and found.interval == (-np.inf, np.inf))
        assert found.findable > 0 or np.ptp(table) == 0
    assert over_seeds_and_rows(np.eye(2)).p == 1, "seeds and rows cancel each other out"


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_rows_that_all_say_the_same_give_no_certainty(seeds, value):
    """Two methods that answer alike on twenty rows may differ on the next."""
    for clusters in (None, [0, 0, 1, *range(17)]):
        found = over_seeds_and_rows(np.full((seeds, 20), value), clusters)
        assert found.mean == pytest.approx(value) and found.p == 1
        assert found.interval == (-np.inf, np.inf) and found.findable == np.inf


def test_holm_against_its_definition():
    """In order, .001·5, .001·4, .03·3, .04·2 and .2·1; none counts less than one before it, or more than 1."""
    assert holm([0.04, 0.001, 0.03, 0.2, 0.001]) == pytest.approx([0.09, 0.005, 0.09, 0.2, 0.005])
    assert holm([0.04]) == [0.04] and holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_holm_finds_one_by_chance_in_at_most_one_family_of_twenty():
    rng = np.random.default_rng(11)
    families = rng.random((4000, 12))
    assert np.mean([min(holm(list(family))) < 0.05 for family in families]) <= 0.06


def test_what_tells_nothing_is_sure_of_nothing():
    alone = over_seeds_and_rows(np.ones((1, 1)))
    assert alone.p == 1.0 and alone.interval == (-np.inf, np.inf)
    assert over_seeds(np.ones((1, 5))).interval == (-np.inf, np.inf)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "exact_match"])
def test_contributions_average_to_the_score(metric):
    rng = np.random.default_rng(12)
    if metric == "exact_match":
        systems = [list(rng.random(60) < 0.5) for _ in range(2)]
    else:
        words = np.array(["yes", "no", "maybe"])
        systems = [list(zip(words[rng.integers(0, 3, 60)], words[rng.integers(0, 2, 60)], strict=True)) for _ in "ab"]
        systems[0][3] = (None, "yes")
    assert contributions(metric, systems).mean(1) == pytest.approx([score(metric, system) for system in systems])


def test_a_contribution_to_macro_f1_is_what_leaving_the_row_out_would_take():
    """The infinitesimal jackknife: the score of rows weighted a little less at one of them, by differences."""
    rng = np.random.default_rng(13)
    words = np.array(["a", "b", "c"])
    rows = list(zip(words[rng.integers(0, 3, 40)], words[rng.integers(0, 3, 40)], strict=True))
    repeated = 2000
    for place in (0, 7, 21):
        more = rows * repeated + [rows[place]]
        influence = (score("macro_f1", more) - score("macro_f1", rows)) * (len(rows) * repeated + 1)
        assert contributions("macro_f1", [rows])[0, place] - score("macro_f1", rows) == pytest.approx(
            influence, abs=1e-3
        )
