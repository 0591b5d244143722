import json

import pytest
import ray

from tiny_audio.lab.benchmarks.parts.plan import PlanSize, plan_figures


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow  # it measures; what it calls has tests of its own
def test_the_plan_is_measured_without_a_gpu_and_without_the_files_it_is_of():
    size = PlanSize(num_files=10, num_footers=2)
    rows = {row["name"]: row for row in ray.get(ray.remote(plan_figures).remote(size))}
    json.dumps(rows)
    assert rows["footers read"]["num_row_groups"] == 200
    resumed = rows["resumed near the end of an epoch"]
    assert (resumed["num_rows"], resumed["num_files"], resumed["num_steps"]) == (100_000, 10, 196)
    assert resumed["step"] == 188
    assert resumed["window_rows"] == 2048  # no more is read of the epoch
    assert rows["all windows of the epoch"]["num_windows"] == 49
    assert rows["all windows of the epoch"]["same_as_from_the_start"]
    assert rows["position in a checkpoint"]["step"] == 188
    assert rows["position in a checkpoint"]["state_json_bytes"] < 10_000
    assert rows["the run's folder read"]["num_row_groups"] == 1000
    assert 140e6 < rows["the run's folder read"]["checkpoint_bytes"] < 145e6
    assert rows["through Ray Data, epochs: 10"]["num_steps"] == 1960
    assert rows["through Ray Data, epochs: 10"]["first_step"] == 188
    memory = rows["memory of the driver"]
    assert memory["peak_mib"] - memory["imported_mib"] < 320  # for the largest tokenizer, and this small plan
