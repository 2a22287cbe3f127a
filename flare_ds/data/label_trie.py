"""How label words are told apart: the places where their tokens part.

    poor          ┬─ poor              node at the start: poor | very
    very good     └─ very ─┬─ good     node behind "very": good | bad
    very bad               └─ bad

The score of a word is the sum, over the nodes on its way, of the log-softmax over the branches there: the probability
that the word is reached by one who may only say label words. Where nothing else can follow nothing is added, so no
word wins or loses by its length. Where all first tokens differ there is one node, at the start.

Legend: K different tokens among the branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A place where label words part.

    Attributes:
        before: tokens that the words have in common.
        branches: the tokens that can follow, each once, in the order of the words.
        places: of the branches among the trie's tokens.
    """

    before: Tokens
    branches: Tokens
    places: Tokens


class LabelTrie:
    """The nodes of some label words.

    Args:
        label_tokens: of each word; none of them begins another.

    Attributes:
        words: the same.
        tokens: those of all branches, each once: [K].
        nodes: the places with several branches; of a single word, its start.
    """

    def __init__(self, label_tokens: Sequence[Sequence[int]]) -> None:
        self.words: list[Tokens] = [tuple(tokens) for tokens in label_tokens]
        following: dict[Tokens, dict[int, None]] = {}
        for word in self.words:
            for place, token in enumerate(word):
                following.setdefault(word[:place], {})[token] = None
        branches = {before: tuple(tokens) for before, tokens in following.items() if len(tokens) > 1}
        if len(self.words) == 1:
            branches = {(): self.words[0][:1]}
        self.tokens = list(dict.fromkeys(chain(*branches.values())))
        self.nodes = [
            Node(before, tokens, tuple(self.tokens.index(token) for token in tokens))
            for before, tokens in branches.items()
        ]

    @property
    def depth(self) -> int:
        """Most tokens that are read behind a prompt."""
        return max((len(node.before) for node in self.nodes), default=0)

    @cached_property
    def paths(self) -> list[Tokens]:
        """What must be read behind a prompt to have been at every node, as few as will do."""
        befores = [node.before for node in self.nodes]
        return [path for path in befores if not any(path == other[: len(path)] for other in befores if other != path)]

    def way(self, label: int) -> list[tuple[Node | None, int]]:
        """For each token of a word, up to the last that tells it apart, the node and the branch at which it is chosen.

        The node is None where nothing else can follow.
        """
        word = self.words[label]
        at = {node.before: node for node in self.nodes}
        nodes = [at.get(word[:place]) for place in range(len(word))]
        last = max(place for place, node in enumerate(nodes) if node is not None)
        return [
            (node, node.branches.index(token) if node else 0)
            for node, token in zip(nodes[: last + 1], word, strict=False)
        ]
