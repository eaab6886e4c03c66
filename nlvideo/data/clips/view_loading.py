"""Loads what validation and evaluation look at, video by video."""

from collections.abc import Generator, Iterator, Sequence
from itertools import takewhile

from torch.utils.data import BatchSampler

from nlvideo.data.clips.batch import Batch, collate
from nlvideo.data.clips.loading import TRAINING_ADVICE, Loading, PathsAhead, explained, reading
from nlvideo.data.clips.views import CenterClips, MultiViews, VideoViews, without_views

EVALUATION_ADVICE = (
    "Scores are kept. Run the same command again with more time, data.time_limit_seconds, or with data.skip_slow=true, "
    "which counts the video as wrong."
)


def center_clip_batches(
    dataset: CenterClips, videos: Sequence[int], loading: Loading, batch_size: int
) -> Iterator[Batch]:
    """Yields Batches of these videos' centre clips, in their order; a lost worker is named with its video."""
    try:
        ahead = PathsAhead(dataset.table, BatchSampler(videos, batch_size, drop_last=False))
        loader = loading.loader(dataset, collate, ahead, batch_size=batch_size, sampler=videos)
        with reading(loader) as batches:
            yield from batches
    except RuntimeError as error:
        raise explained(error, dataset.opener.watch.lost(str(error)), TRAINING_ADVICE) from None


def each_video(dataset: MultiViews, videos: Sequence[int], loading: Loading) -> Generator[VideoViews, None, None]:
    """Yields the views of these videos, in their order; a lost worker is named with its video.

    With skip_slow a video at which a worker hangs or dies is a failure, and new workers continue with the others.
    """
    waiting, broken = list(videos), dict[str, str]()
    while waiting:
        if reason := broken.get(dataset.table.path(waiting[0])):
            yield without_views(waiting.pop(0), reason)
            continue
        part = list(takewhile(lambda video: dataset.table.path(video) not in broken, waiting))
        try:
            # All views of a video may take half a gigabyte: each worker holds one video ready, and none is copied.
            ahead = {"prefetch_factor": 1} if loading.num_workers else {}
            options = {"batch_size": None, "sampler": part, "pin_memory": False, **ahead}
            loader = loading.loader(
                dataset, _unchanged, PathsAhead(dataset.table, [[video] for video in part]), **options
            )
            with reading(loader) as read:
                for views in read:
                    waiting.pop(0)
                    yield views
        except RuntimeError as error:
            lost = dataset.opener.watch.lost(str(error))
            if lost is None or not lost.path or not dataset.skip_slow:
                raise explained(error, lost, EVALUATION_ADVICE) from None
            broken[lost.path] = "decoding hangs" if lost.stack else "its worker died"


def _unchanged(views: VideoViews) -> VideoViews:
    return views
