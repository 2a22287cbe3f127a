"""metrics.json stands for the predictions beside it, whenever an evaluation ends."""

import pytest

from flare_ds.evaluation.evaluate import _write
from flare_ds.evaluation.other_rows import OWN
from flare_ds.evaluation.scores import Scores
from flare_ds.runs import RunDirectory
from flare_ds.scoring.predictions import PREDICTIONS, read_predictions
from flare_ds.settings import load_config
from tests.report.runs import write_run


def test_what_ends_between_the_files_leaves_no_score_of_other_predictions(tmp_path):
    run = RunDirectory(write_run(tmp_path, "zero_shot", "zero_shot", 1, [True, False]))
    config = load_config(run.path, ["tracking.to=[]"])
    record = {"id": "other", "cluster": 1, "label": "yes", "prediction": "yes"}
    assert run.finished
    with pytest.raises(AttributeError):  # for want of a cache, which metrics.json would be made of
        _write(run.path, Scores("accuracy", "ranked", {"accuracy": 1.0}, [record]), config, None, OWN, seconds=1.0)
    assert read_predictions(run.path / PREDICTIONS) == [record] and not run.finished
