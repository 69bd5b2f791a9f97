"""One callback for Optuna, MLflow and Weights & Biases."""

from __future__ import annotations

import pytest

import zerosum_ext as zx
from zerosum_ext.integrations.tracking import tracker


@pytest.fixture(scope="module")
def data():
    return zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 60)).split_random((0.8, 0.2, 0.0), seed=0)


def train(data, callback, epochs=3, lr=0.02):
    model = zx.MatrixFactorization(40, 60, 4, seed=0)
    return model.fit(
        data.train, "bpr", lr=lr, epochs=epochs, batch_size=256, progress=False, callbacks=[callback],
        validation=data.valid,
    )  # fmt: skip


def test_a_function_gets_every_epoch(data):
    seen = []
    history = train(data, tracker(lambda values, step: seen.append((step, values)), more=lambda event: {"mine": 1.0}))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert [values["loss"] for _, values in seen] == list(history)
    assert [values["ndcg_at_10"] for _, values in seen] == history.validation
    assert seen[0][1]["mine"] == 1.0
    assert seen[0][1]["learning_rate"] == 0.02
    seen.clear()
    train(data, tracker(lambda values, step: seen.append(step), every=2))
    assert seen == [2]
    with pytest.raises(TypeError, match="target"):
        tracker("wandb")


def test_optuna_sees_epochs_and_prunes(data):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for lr in (0.05, 1e-9):
        study.enqueue_trial({"lr": lr})

    def objective(trial):
        return max(train(data, tracker(trial), lr=trial.suggest_float("lr", 1e-9, 1.0, log=True)).validation)

    study.optimize(objective, n_trials=2)
    done, pruned = study.trials
    assert list(done.intermediate_values) == [1, 2, 3]
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert len(pruned.intermediate_values) < 3


def test_mlflow_keeps_the_epochs(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    mlflow.set_experiment("zerosum")
    with mlflow.start_run() as run:
        history = train(data, tracker(mlflow.log_metrics))
    kept = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in kept] == [(n + 1, loss) for n, loss in enumerate(history)]
    assert mlflow.get_run(run.info.run_id).data.metrics["ndcg_at_10"] == history.validation[-1]


def test_wandb_keeps_the_epochs(data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # asks nothing of the network
    settings = wandb.Settings(
        mode="offline", console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, x_service_wait=200, init_timeout=200,
    )  # fmt: skip
    try:
        with wandb.init(settings=settings, dir=tmp_path, project="zerosum") as run:
            history = train(data, tracker(run.log))
    finally:
        # A process of W&B's writes the file, and an offline run does not wait for it. This does.
        wandb.teardown()
    (file,) = tmp_path.rglob("run-*.wandb")  # waits to be uploaded
    kept = file.read_bytes()
    assert all(repr(loss)[:14].encode() in kept for loss in history)
