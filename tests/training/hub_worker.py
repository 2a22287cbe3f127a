"""One rank that means something by a hub's name: python -m tests.training.hub_worker CONFIG...

For each run a line of JSON: the commit, and a sum over the weights that are loaded.
"""

import json
import sys

from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_base, load_tokenizer
from flare_ds.runs.hub_names import settle_hub_names
from flare_ds.runtime.joining import join_process_group
from flare_ds.settings import load_config

if __name__ == "__main__":
    join_process_group()
    for path in sys.argv[1:]:
        config = load_config(path)
        settle_hub_names(config)
        loaded = sum(float(p.double().abs().sum()) for p in load_base(config.model).parameters())
        tokens = load_tokenizer(config.model).convert_tokens_to_ids("word1")
        found = {"commit": model_fingerprint(config.model.base), "sum": loaded, "token": tokens}
        print(json.dumps(found), flush=True)
