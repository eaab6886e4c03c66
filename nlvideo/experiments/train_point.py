"""Trains the run whose resolved config comes as JSON on standard input: a point of a sweep, in a process of its own."""

import json
import sys

from nlvideo.config.compose import from_container
from nlvideo.config.schema import TrainConfig
from nlvideo.runtime.distributed import USER_ERRORS, message_of
from nlvideo.train import launch


def main() -> None:
    try:
        launch(from_container(TrainConfig, json.load(sys.stdin)))
    except USER_ERRORS as error:
        sys.exit(message_of(error))


if __name__ == "__main__":
    main()
