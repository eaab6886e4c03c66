"""logger=wandb and logger=mlflow: whether they can be used, and the run that they log."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.runtime.errors import UserError
from nlvideo.training.background_log import BackgroundLog, Tracker

PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}  # the latter two for its SQLite file
OLDEST_WANDB = (0, 30)  # login(prompt=False); Settings(finish_timeout) is older

# Unless the user has set them. Both libraries would make a program wait at its end for a server that does not answer:
# mlflow four minutes for each request, wandb 20 s to report its own errors.
LIBRARY_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "WANDB_ERROR_REPORTING": "false",
}


def check_logger(name: str | None) -> None:
    """Raises UserError if the packages of a logger are missing or too old."""
    missing = [package for package in PACKAGES.get(name or "", ()) if find_spec(package) is None]
    if missing:
        raise UserError(f"logger={name} needs the package {', '.join(missing)}: pip install 'nlvideo[{name}]'.")
    if name == "wandb" and tuple(int(part) for part in version("wandb").split(".")[:2]) < OLDEST_WANDB:
        raise UserError(f"logger=wandb: wandb {version('wandb')} is too old: pip install 'nlvideo[wandb]'.")


def open_logger(config: TrainConfig, folder: Path) -> BackgroundLog | None:
    """Returns the logger of a run, None for logger=null. A resumed run continues its run there."""
    if config.logger is None:
        return None
    os.environ.update(LIBRARY_SETTINGS | dict(os.environ))  # read when the libraries are imported, below
    tracker: Tracker
    if config.logger == "wandb":
        from nlvideo.training.wandb_run import WandbRun

        tracker = WandbRun(folder, to_container(config))
    else:
        from nlvideo.training.mlflow_run import MlflowRun

        tracker = MlflowRun(folder, to_container(config))
    return BackgroundLog(config.logger, tracker)
