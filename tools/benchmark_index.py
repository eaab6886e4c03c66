"""How large an index of many videos is, how fast it opens, and what memory workers that read by it take.

    python tools/benchmark_index.py [--videos 240000] [--frames 300] [--workers 8] [--samples 20000]

The index holds so many names, of which --samples exist, as links to one small video. The workers open these by the
index, each its part, and say what memory is theirs alone (Private in /proc/PID/smaps_rollup) before, after the first,
after a tenth and after all: it must not grow. Linux only.
"""

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.runtime.video_writer import VideoWriter

TENTHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=240_000)
    parser.add_argument("--frames", type=int, default=300, help="of each (default 300)")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--samples", type=int, default=20_000, help="videos that the workers open, together")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        video = folder / "video.mp4"
        with VideoWriter(video, 25, {"preset": "ultrafast", "threads": "1"}) as writer:
            for i in range(arguments.frames):
                writer.write(np.full((64, 64, 3), i % 256, np.uint8))
        links = [folder / f"class {i % 400}_{i:011d}_000010_000020.mp4" for i in range(arguments.videos)]
        for link in links[: arguments.samples]:
            link.symlink_to(video)
        for irregular in (False, True):
            fill(folder, video, links, irregular)
        report(folder, links[: arguments.samples], arguments.workers)


def fill(folder: Path, video: Path, links: list[Path], irregular: bool) -> None:
    """Makes an index of all links, and prints how long that takes and how large it is.

    Args:
        irregular: the frames' times are at uneven distances, other ones for every video.
    """
    index, rng = VideoIndex(folder / f"{'irregular' if irregular else 'regular'}.index"), np.random.default_rng(0)
    with PyavVideo(video) as opened:
        facts = opened.facts
    state = index.state(video)
    assert state is not None
    start = time.process_time()
    for link in links:
        if irregular:
            facts = dataclasses.replace(facts, times=np.cumsum(rng.integers(400, 600, facts.num_frames)))
        index.add(state._replace(name=os.fsencode(link.name)), facts)
    index.merge()
    kind = "times that are all irregular" if irregular else "regular times"
    print(
        f"{len(links)} videos of {facts.num_frames} frames, {kind}: {index.file.stat().st_size / 1e6:.0f} MB, ", end=""
    )
    print(f"made in {time.process_time() - start:.1f} s")


def report(folder: Path, links: list[Path], workers: int) -> None:
    """Prints how long the index takes to open and to be looked into, and the workers' memory."""
    file = folder / "regular.index"
    start = time.perf_counter()
    index = VideoIndex(file)
    state = index.state(links[0])
    assert state is not None and index.find(state) is not None
    print(f"opened, with the first look-up, in {1e3 * (time.perf_counter() - start):.1f} ms")
    start = time.process_time()
    for link in links:
        assert (state := index.state(link)) is not None and index.find(state) is not None
    print(f"a look-up: {1e3 * (time.process_time() - start) / len(links):.3f} ms")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.map(partial(opened_by, file), [links[i::workers] for i in range(workers)], chunksize=1)
    moments = ("before", "after the first", "after a tenth", "after all")
    for name, values in zip(moments, zip(*found, strict=True), strict=True):
        print(f"memory of each of {workers} workers alone, {name}: {min(values):.1f} to {max(values):.1f} MB")


def opened_by(file: Path, links: list[Path]) -> list[float]:
    """Opens videos by an index, and returns this process's memory in MB before, after the first, a tenth and all."""
    open_video(links[0]).close()  # what FFmpeg takes is not the index's
    index, found = VideoIndex(file, grows=False), [private_megabytes()]
    stops = (1, max(2, len(links) // TENTHS), len(links))
    for first, stop in zip((0, *stops), stops, strict=False):
        for link in links[first:stop]:
            open_video(link, index=index).close()
        found.append(private_megabytes())
    return found


def private_megabytes() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024 / 1e6


if __name__ == "__main__":
    main()
