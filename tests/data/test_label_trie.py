"""Where label words part."""

import pytest

from flare_ds.data.label_trie import LabelTrie

APART = [[5, 6], [9], [30, 2]]


def nodes(words: list[list[int]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {node.before: node.branches for node in LabelTrie(words).nodes}


@pytest.mark.parametrize(
    ("words", "expected", "paths"),
    [
        (APART, {(): (5, 9, 30)}, [()]),
        ([[4, 6], [4, 7]], {(4,): (6, 7)}, [(4,)]),
        ([[4, 6, 1, 2], [4, 7], [4, 6, 1, 3], [5]], {(): (4, 5), (4,): (6, 7), (4, 6, 1): (2, 3)}, [(4, 6, 1)]),
        ([[4, 6], [5, 8], [4, 7], [5, 9]], {(): (4, 5), (4,): (6, 7), (5,): (8, 9)}, [(4,), (5,)]),
        ([[4, 2], [4, 6, 2]], {(4,): (2, 6)}, [(4,)]),
        ([[4, 6]], {(): (4,)}, [()]),
        ([], {}, []),
    ],
)
def test_words_part_where_several_tokens_can_follow(words: list, expected: dict, paths: list) -> None:
    assert nodes(words) == expected
    trie = LabelTrie(words)
    assert trie.paths == paths and trie.depth == max(map(len, paths), default=0)
    assert all([trie.tokens[place] for place in node.places] == [*node.branches] for node in trie.nodes)


def test_the_tokens_of_words_that_part_at_once_are_their_first() -> None:
    assert LabelTrie(APART).tokens == [5, 9, 30]


def test_a_words_way_ends_with_the_last_token_that_tells_it_apart() -> None:
    trie = LabelTrie([[4, 6, 1, 2, 8], [4, 6, 1, 3], [5, 7, 7]])
    assert [(node and node.before, branch) for node, branch in trie.way(1)] == [
        ((), 0),
        (None, 0),
        (None, 0),
        ((4, 6, 1), 1),
    ]
    assert [branch for _, branch in trie.way(2)] == [1]
