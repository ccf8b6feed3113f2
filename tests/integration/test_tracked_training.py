"""A real pre-training without MLflow, sent to it afterwards: every step, what the node did, and the corpus's page."""

from pathlib import Path

from mlflow import MlflowClient

from promptmeup.shard_format import read_manifest
from promptmeup.tracking import journal, mlflow_run
from promptmeup.tracking.sync import sync
from tests.integration.conftest import tiny_config, train_on_rank
from tests.support.ranks import run_ranks


def test_run_is_sent_afterwards(news_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = news_world / "packed/gallery.html"
    page.write_text("<p>photos")
    config = tiny_config(news_world, f"out={run}", "steps=4", "tracking.system_seconds=0.02")
    assert run_ranks(train_on_rank, 2, config, timeout=120) == [True, True]
    (node,) = (run / "system").iterdir()
    samples = [entry["step"] for entry in journal.read(node)]
    assert samples == list(range(len(samples)))

    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert "FINISHED" in sync(run, uri=store)
    client = MlflowClient(store)
    found = client.get_run(mlflow_run.run_id(run) or "")
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3, 4]
    usage = client.get_metric_history(found.info.run_id, f"system/{node.stem}/cpu_utilization_percentage")
    assert sorted(metric.step for metric in usage) == samples
    assert "gallery.html" in {file.path for file in client.list_artifacts(found.info.run_id)}
    digests = {i.dataset.digest for i in found.inputs.dataset_inputs}
    assert digests == {read_manifest(news_world / "packed" / split).fingerprint for split in ("train", "val")}
