"""How certain it is that the Hindi rows of task squad_hi say what the English rows of the same ids say; prints JSON.

    python benchmarks/squad_hi.py "$(flare-ds fetch data squad_hi)" [--release xquad.hi.json]

A translator keeps digits and Latin words. So, without any knowledge of Hindi, a pair that holds shares them, and a pair
shifted by one question or one paragraph does not:

    passages       share of paragraphs whose two passages have more than half of their numbers in common
    questions      share of questions whose two sides (question and first answer) have the same numbers, among those
                   where the English side has any; `next_question` compares the next one of the same paragraph

`--release` compares every pair with XQuAD's own release (google-deepmind/xquad), whose rows have SQuAD's ids.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from flare_ds.tasks import TASKS, Row
from flare_ds.tasks.squad_hi import SquadHi

Pair = tuple[Row, Row]
EDGES = "\ufeff \n"  # what passages may begin and end with


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="certainty of the pairs of task squad_hi")
    parser.add_argument("data_dir")
    parser.add_argument("--release", type=Path)
    options = parser.parse_args()
    pairs = read_pairs(options.data_dir)
    paragraphs = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[0].id.rpartition("-")[0])]
    firsts = [group[0] for group in paragraphs]
    found = {
        "paragraphs": len(paragraphs),
        "pairs": len(pairs),
        "passages": {
            "aligned": share(overlaps(english, hindi) for english, hindi in firsts),
            "next_paragraph": share(overlaps(a[0], b[1]) for a, b in shifted(firsts)),
        },
        "questions": {
            "aligned": share(same_numbers(english, hindi) for english, hindi in pairs),
            "next_question": share(
                same_numbers(a[0], b[1]) for group in paragraphs if len(group) > 1 for a, b in shifted(group)
            ),
        },
        "answers_found_in_passage": share(row.answers[0].start is not None for _, row in pairs),
    }
    if options.release is not None:
        found["release"] = compare(pairs, options.data_dir, options.release)
    json.dump(found, sys.stdout, indent=2)
    print()


def read_pairs(data_dir: str) -> list[Pair]:
    """English and Hindi rows of the same id, in the file's order."""
    task = TASKS.get("squad_hi")
    english = {row.id: row for row in task.read(data_dir, "en", "all")}
    return [(english[row.id], row) for row in task.read(data_dir, "hi", "all")]


def shifted(pairs: Sequence[Pair]) -> Iterable[tuple[Pair, Pair]]:
    """Each pair beside the next, the last beside the first."""
    return zip(pairs, [*pairs[1:], pairs[0]], strict=True)


def numbers(text: str) -> list[str]:
    """Its numbers, in order of value: both scripts' digits, without the commas inside."""
    return sorted(str(int(number)) for number in re.findall(r"\d+", text.replace(",", "")))


def overlaps(english: Row, hindi: Row) -> bool | None:
    """Whether the passages share more than half of their numbers; None: the English one has none."""
    ours, theirs = (set(numbers(row.fields["context"])) for row in (english, hindi))
    return 2 * len(ours & theirs) > len(ours | theirs) if ours else None


def same_numbers(english: Row, hindi: Row) -> bool | None:
    """Whether question and answer have the same numbers; None: the English ones have none."""
    ours, theirs = (numbers(f"{row.fields['question']} {row.answers[0].text}") for row in (english, hindi))
    return ours == theirs if ours else None


def share(outcomes: Iterable[bool | None]) -> dict[str, Any]:
    """The share that is true among those that can be told."""
    told = [outcome for outcome in outcomes if outcome is not None]
    return {"of": len(told), "share": round(sum(told) / len(told), 4)}


def compare(pairs: Sequence[Pair], data_dir: str, release: Path) -> dict[str, Any]:
    """Shares of pairs whose Hindi texts, and where the answer stands, are the release's for that SQuAD id."""
    articles = json.loads((Path(data_dir) / SquadHi.english_file).read_text(encoding="utf-8"))["data"]
    ids = {
        f"{article['title']}-{number}-{index}": question["id"]
        for article in articles
        for number, paragraph in enumerate(article["paragraphs"])
        for index, question in enumerate(paragraph["qas"])
    }
    official = {
        question["id"]: (paragraph["context"], question["question"], question["answers"][0])
        for article in json.loads(release.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    checks: dict[str, Callable[[Row, str, str, Any], bool]] = {
        "context": lambda row, context, question, answer: row.fields["context"] == context.strip(EDGES),
        "question": lambda row, context, question, answer: row.fields["question"] == question.strip(),
        "answer": lambda row, context, question, answer: row.answers[0].text == answer["text"],
        "answer_start": lambda row, context, question, answer: (
            row.answers[0].start == answer["answer_start"] - len(context) + len(context.lstrip(EDGES))
        ),
    }
    return {name: share(check(row, *official[ids[row.id]]) for _, row in pairs) for name, check in checks.items()}


if __name__ == "__main__":
    main()
