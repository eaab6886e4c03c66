"""Builds loaders of clips from the config."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.augmentation import Augmentation
from nlvideo.data.clips.batch import Batch
from nlvideo.data.clips.epoch_order import EpochOrder, expected_draws
from nlvideo.data.clips.loading import Loading, Share, batches_of_steps
from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.clips.view_loading import center_clip_batches, each_video
from nlvideo.data.clips.views import CenterClips, MultiViews, VideoViews
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.index.video_index import INDEX_FILE, VideoIndex, chosen_index, index_problem
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.addresses import is_address
from nlvideo.data.stores.cache import Cache, default_folder
from nlvideo.data.stores.store import check_package
from nlvideo.runtime.cores import cores_of_rank, ranks_here
from nlvideo.runtime.shared_memory import SHARED_MEMORY, shared_memory

MAX_WORKERS = 16  # of a loader, unless the config says more
# Of a rank, beside the one that each worker holds ready: that in use, and the next one while it is fetched.
VIDEOS_IN_USE = 2
USUAL_FRAME = (9, 16)  # height to width


def train_clips(
    data: DataConfig, table: VideoTable, skipped: Tensor, *, seed: int, index_grows: bool = True
) -> TrainClips:
    """Returns the training samples, see train_batches.

    Args:
        index_grows: the index learns of videos that it does not know.
    """
    (low, high), (smallest, largest) = data.scale_range, data.crop_area
    augments = data.augment != "none" or data.erasing > 0
    colour = [255 * value for value in data.mean]
    return TrainClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        scale_range=(low, high),
        crop_size=data.crop_size,
        flip=data.flip,
        seed=seed,
        crop_area=(smallest, largest) if data.crop == "random_resized" else None,
        augmentation=Augmentation(data.augment, data.augment_strength, data.erasing, colour) if augments else None,
        opener=build_opener(data, index_grows=index_grows),
        skip_slow=data.skip_slow,
        skipped=skipped,
    )


def train_batches(
    data: DataConfig, table: VideoTable, share: Share, skipped: Tensor, *, seed: int, first_step: int, last_step: int
) -> Generator[list[Batch], None, None]:
    """Yields this rank's micro-batches of the steps first_step .. last_step - 1, one list per step.

    Args:
        skipped: (videos,) bool in shared memory: videos that took too long. It is read before each video is opened,
            and marked here if a worker hangs and data.skip_slow allows it.

    Raises:
        RunFailed: a video took too long or a worker died at it; names the video and the worker, with its stack.
    """
    dataset = train_clips(data, table, skipped, seed=seed)
    return batches_of_clips(data, dataset, share, first_step=first_step, last_step=last_step)


def batches_of_clips(
    data: DataConfig, dataset: TrainClips, share: Share, *, first_step: int, last_step: int
) -> Generator[list[Batch], None, None]:
    """Yields the batches of train_batches from what train_clips has returned."""
    table = dataset.table
    expected = expected_draws(table, data.balance) if data.balance != "none" else None
    order = EpochOrder(len(table), dataset.seed, expected, clips_per_video=data.clips_per_video)
    return batches_of_steps(dataset, order, share, _loading(data), first_step=first_step, last_step=last_step)


def center_batches(data: DataConfig, table: VideoTable, batch_size: int, *, rank: int, size: int) -> Iterator[Batch]:
    """Yields Batches with the centre clip of every size-th video; no video is repeated to fill the last batch."""
    dataset = CenterClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        short_side=data.test.short_side,
        crop_size=data.crop_size,
        opener=build_opener(data),
        skip_slow=data.skip_slow,
    )
    return center_clip_batches(dataset, range(rank, len(table), size), _loading(data), batch_size)


def video_views(data: DataConfig, table: VideoTable, videos: Sequence[int]) -> Generator[VideoViews, None, None]:
    """Yields the VideoViews of the videos with these indices, in their order."""
    test = data.test
    dataset = MultiViews(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        num_clips=test.num_clips,
        num_crops=test.num_crops,
        clip_sampling=test.clip_sampling,
        short_side=test.short_side,
        crop_size=test.crop_size,
        opener=build_opener(data),
        skip_slow=data.skip_slow,
    )
    return each_video(dataset, videos, Loading(view_workers(data).number, data.start_method))


def num_workers(data: DataConfig, ranks: int | None = None) -> int:
    """Returns how many workers each loader of a rank has.

    Without a number in the config it has one for each of its cores but one, which the rank itself needs, at least one
    and at most MAX_WORKERS.

    Args:
        ranks: those that share this machine's cores; None: those that have been started on it.
    """
    if data.num_workers is not None:
        return data.num_workers
    return max(1, min(cores_of_rank(ranks) - 1, MAX_WORKERS))


class ViewWorkers(NamedTuple):
    """How many workers of a rank load all views of videos; 0: the rank does so itself."""

    number: int
    note: str | None = None  # what to print where shared memory is small


def view_workers(data: DataConfig) -> ViewWorkers:
    """Returns as many workers as num_workers does, but, without a number in the config, no more than shared memory has
    room for.

    How much they take is known only once videos are open, so a number in the config is never refused.
    """
    wanted, room = num_workers(data), shared_memory()
    if room is None or wanted == 0:
        return ViewWorkers(wanted)
    size = usual_views_bytes(data)
    fitting = max(0, room.free // ranks_here() // size - VIDEOS_IN_USE)
    if wanted <= fitting:
        return ViewWorkers(wanted)
    needed = (wanted + VIDEOS_IN_USE) * ranks_here() * size
    there = f"{SHARED_MEMORY} has {room}"
    why = f"{wanted} may need {needed / 1e6:.0f} MB of shared memory, and {there} (docker run --shm-size)"
    if data.num_workers is not None:
        return ViewWorkers(wanted, f"data.num_workers={wanted}: {why}")
    return ViewWorkers(fitting, f"{fitting} for each rank: {why}")


def usual_views_bytes(data: DataConfig) -> int:
    """Returns the bytes of all views of a video of USUAL_FRAME, whose clips share no frame."""
    height, width = resized_size(*USUAL_FRAME, data.test.short_side)
    return data.test.num_clips * data.num_frames * height * width * 3


def build_opener(data: DataConfig, *, index_grows: bool = True) -> Opener:
    index = build_index(data, grows=index_grows)
    settings = data.decoder, data.time_limit_seconds, data.frame_rate, data.clip_fps
    return Opener(*settings, index, build_cache(data))


def build_cache(data: DataConfig) -> Cache:
    """Returns the cache for videos of stores; nothing is made before the first of them."""
    folder = Path(data.cache_dir) if data.cache_dir is not None else default_folder()
    return Cache(folder, data.cache_gb, num_workers(data))


def check_stores(data: DataConfig, table: VideoTable) -> None:
    """Makes the cache ready if a list has videos in stores.

    Raises:
        UserError: a package that is missing, or a cache that cannot be written.
    """
    schemes = table.schemes()
    for scheme in sorted(schemes):
        check_package(scheme, f"data.root={data.root}" if is_address(data.root) else table.source)
    if schemes:
        build_cache(data).check()


def build_index(data: DataConfig, *, grows: bool = True) -> VideoIndex | None:
    """Returns the index that data.index names, or that of data.root; None if there shall be none."""
    file = index_file(data)
    return VideoIndex(file, grows=grows) if file is not None else None


def index_file(data: DataConfig) -> Path | None:
    """Returns where the index of the videos is kept; None if there shall be none, or the decoder has no use for it.

    Raises:
        UserError: see chosen_index.
    """
    if data.index == "none" or data.decoder != "pyav":
        return None
    if data.index is None:
        return (build_cache(data).folder if is_address(data.root) else Path(data.root)) / INDEX_FILE
    return chosen_index(data.index, f"data.index={data.index}")


def index_note(data: DataConfig) -> str | None:
    """Returns a line about an index that is not what is expected of it, None if there is nothing to say."""
    file = index_file(data)
    problem = index_problem(file) if file is not None else None
    if problem is None or data.index is not None:
        return problem
    return f"{problem}; data.index=FILE keeps it elsewhere, data.index=none does without"


def _loading(data: DataConfig) -> Loading:
    return Loading(num_workers(data), data.start_method)
