"""A folder as an MLflow model, which `mlflow.pyfunc.load_model` and MLflow's servers load."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptmeup.tracking.mlflow_run import set_environment


def save_pyfunc(
    folder: Path, *, loader: str, data: Path, inputs: Mapping[str, bool], requirements: Sequence[str]
) -> None:
    """Write the model: a copy of `data`, and the name of what loads it; nothing is pickled.

    Args:
        folder: made; must not exist.
        loader: module whose `_load_pyfunc(path of the copy)` returns an object with `predict(table)`.
        inputs: column of text -> whether it is required; the answer is a text for each row.
        requirements: pip's, of whoever loads it.
    """
    set_environment()
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [ColSpec("string", name, required=required) for name, required in inputs.items()]
    with warnings.catch_warnings():
        # it misses an example, for which it would have to load the model
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=loader,
            data_path=str(data),
            signature=ModelSignature(Schema(columns), Schema([ColSpec("string")])),
            pip_requirements=list(requirements),
        )
