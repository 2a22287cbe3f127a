"""Generated label words: what the model writes, compared as a whole with the label words (the paper's protocol).

Case, ASCII punctuation and spacing do not count; everything else does:

    written               prediction
    " Positive."          positive
    "positive review"     none, which is wrong
    ""                    none
"""

from statistics import fmean

from flare_ds.evaluation.answerable import as_compared, label_readings
from flare_ds.evaluation.answers import not_finite_answers, written
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.scores import Scores, label_figures
from flare_ds.tasks.base import Metric


def score_generated_labels(asked: Asked, split_name: str, *, metric: Metric) -> Scores:
    """Decode an answer for every row of a split and read it as a label word; a collective, the same on every rank.

    Args:
        asked: the model, with its whole head, and what it reads; `generate` says how.
        split_name: train, validation or test.
        metric: the task's.

    Raises:
        ConfigError: see `label_readings`.
    """
    split, words = asked.cache.split(split_name), asked.cache.labels
    readings = label_readings(words)
    said = written(asked, split_name)
    records = [
        {
            "id": split.ids(row),
            "cluster": int(split.clusters[row]),
            "label": words[label],
            "prediction": readings.get(as_compared(answer.text)),
            "text": answer.text,
            "log_probability": answer.log_probability,
        }
        for row, (label, answer) in enumerate(zip(split.labels, said, strict=True))
    ]
    not_a_label = fmean(record["prediction"] is None for record in records)
    cut_off = fmean(not answer.ended for answer in said)
    figures = {**label_figures(records), "not_a_label": not_a_label, "cut_off": cut_off}
    return Scores(metric, "generated", figures, records, not_finite_answers(split, said))
