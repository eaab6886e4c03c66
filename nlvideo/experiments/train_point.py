"""Trains the run whose resolved config comes as JSON on standard input: a point of a sweep, in a process of its own."""

import json
import sys

from nlvideo.config.compose import from_container
from nlvideo.config.schema import TrainConfig
from nlvideo.runtime.errors import REPORTED_ERRORS, error_line
from nlvideo.train import launch


def main() -> None:
    try:
        launch(from_container(TrainConfig, json.load(sys.stdin)))
    except REPORTED_ERRORS as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
