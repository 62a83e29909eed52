"""What a run writes while it trains."""

import json

from hybridlm.lm.run import Run
from hybridlm.lm.train.telemetry import log_measured


def test_records_are_lines_and_none_joins_a_broken_one(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    run = Run(tmp_path)
    for loss in (1.0, 2.0):
        log_measured(run, round(loss), "some", {"loss": loss})
    lines = run.metrics_file.read_text().splitlines()
    assert [json.loads(line)["some/loss"] for line in lines] == [1.0, 2.0]
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "tra')
    log_measured(run, 3, "some", {"loss": 3.0})
    assert [record["some/loss"] for record in run.metrics()] == [1.0, 2.0, 3.0]
