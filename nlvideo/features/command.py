"""nlvideo-extract: the features of videos, as arrays of snippets and crops."""

import io
import sys
from functools import partial

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
from omegaconf import DictConfig, OmegaConf

from nlvideo.config.compose import command_line_keys, run_command
from nlvideo.config.schema import ExtractConfig
from nlvideo.features.extraction import extract
from nlvideo.features.presets import extract_settings
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.launch import launch_ranks
from nlvideo.weights.exported_network import read_network


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    run_command(extract_features, "extract")


def extract_features(composed: DictConfig) -> None:
    """Extracts on as many ranks as the config asks for.

    Raises:
        UserError: videos, settings or a folder that make no sense, before anything is computed.
        RunFailed: some videos failed, or the disk is full.
    """
    for key in ("checkpoint", "videos", "output"):
        if OmegaConf.is_missing(composed, key) or not composed[key]:
            raise UserError(f"{key} has no value; give it as {key}=PATH on the command line.")
    given = command_line_keys(composed)
    if distributed.under_torchrun():
        distributed.init_world()
    trained = distributed.on_main(read_network, composed.checkpoint, composed.trusted is True)
    config = extract_settings(trained.config, given)
    if distributed.is_first() and trained.note:
        print(trained.note)
    if config.num_devices > 1:
        launch_ranks(extract_and_leave, config, config.num_devices)
    else:
        launch_ranks(partial(extract, trained=trained), config, config.num_devices)
        distributed.leave_world()


def extract_and_leave(config: ExtractConfig) -> None:
    extract(config)
    distributed.leave_world()


if __name__ == "__main__":
    main()
