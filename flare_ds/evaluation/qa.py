"""Exact match and F1 of a free answer, as SQuAD v1.1's evaluation has them, which is TyDiQA-GoldP's too.

Texts are compared in lower case, without ASCII punctuation, without English articles and with single spaces, in
every language alike: other scripts' punctuation and articles stay. Several right answers: the best one counts. Texts
of which nothing is left are equal, but share no token: F1 is 0 (SQuAD v2 says 1, where no answer is an answer).

One rule is added, which changes nothing in ASCII: texts are compared in NFC, so that a letter and its accent are equal
to the letter with its accent. Tokenizers change one form into the other.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from flare_ds.texts import composed, one_line

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """The text as it is compared; punctuation goes before articles, so "(the)" is one and "the-cat" is none."""
    return one_line(_ARTICLES.sub(" ", unpunctuated(text)))


def unpunctuated(text: str) -> str:
    """The text in lower case without ASCII punctuation, in NFC."""
    # In NFC before, for `≠` may be an equals sign and a stroke; and after, for what is left may compose.
    return composed(composed(text).lower().translate(_PUNCTUATION))


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction is one of the right answers."""
    return normalise(prediction) in map(normalise, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over white-space tokens, counted with their repeats."""
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _f1(predicted: list[str], right: list[str]) -> float:
    shared = (Counter(predicted) & Counter(right)).total()
    return 2 * shared / (len(predicted) + len(right)) if shared else 0.0
