"""Says once that a run waits for its data, and what would help."""

from nlvideo.build.data import num_workers
from nlvideo.config.schema import DataConfig
from nlvideo.runtime.cores import cores_of_rank

WARM_UP = 5  # steps that wait for the workers to start
MUCH = 0.1  # of a run's time


class DataWait:
    """Looks at the share of its time that a run waits for data.

    Args:
        first_step: steps that were done before this start.
    """

    def __init__(self, data: DataConfig, first_step: int):
        self._data, self._since, self._said = data, first_step, False
        self._first_step = first_step

    def line(self, step: int, share: float) -> str | None:
        """Returns what to say after a line of metrics: nothing, unless the wait is long and has not been said yet.

        Args:
            share: of the time since the last call, that was spent waiting.
        """
        since, self._since = self._since, step
        if self._said or since < self._first_step + WARM_UP or share <= MUCH:
            return None
        self._said = True
        return waiting_line(share, num_workers(self._data), cores_of_rank())


def waiting_line(share: float, workers: int, cores: int) -> str:
    """Returns the line for a rank that has so many workers on so many cores."""
    count = f"{workers} worker{'' if workers == 1 else 's'} on {cores} core{'' if cores == 1 else 's'}"
    found = f"the training waits for data {100 * share:.0f} % of its time; each rank has {count}"
    if workers < cores - 1:
        return f"{found}: data.num_workers={cores - 1} would use them all"
    return (
        f"{found}, all in use: videos prepared by tools/prepare_videos.py load faster, data.clips_per_video=2 takes "
        "two clips of each, or give each rank more cores"
    )
