"""Draws training samples as the network sees them, for any (epoch, index).

    python tools/show_samples.py samples.png data=folder data.root=DIR                 # the first samples of epoch 0
    python tools/show_samples.py samples.png --samples 0:17 3:17 experiment=i3d_r50_nl5 data.root=DIR

A row is one clip: some of its frames, and the video, start, crop and flip that (seed, epoch, index) draws, with the
augmentation in force. With data.clips_per_video, a sample is so many rows, and an epoch a pass over the list. Settings
are the overrides of nlvideo-train.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from nlvideo.build.data import train_clips
from nlvideo.build.tables import prepare_data, read_train_table
from nlvideo.config.compose import compose_train_config
from nlvideo.data.clips.batch import SampleKey
from nlvideo.runtime.errors import UserError, reporting_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the .png, .jpg, .svg or .pdf to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--samples", nargs="+", metavar="EPOCH:INDEX", help="default: 0:0 to 0:5")
    parser.add_argument("--frames", type=int, default=8, help="frames shown of each clip (default 8)")
    arguments = parser.parse_intermixed_args()
    for text in [text for text in arguments.samples or [] if "=" in text]:  # overrides may follow --samples
        arguments.samples.remove(text)
        arguments.overrides.append(text)
    with reporting_errors():
        draw(arguments)


def draw(arguments: argparse.Namespace) -> None:
    config = compose_train_config(arguments.overrides)
    prepare_data(config.data)
    table = read_train_table(config.data)
    clips = train_clips(config.data, table, torch.zeros(len(table), dtype=torch.bool), seed=config.seed)
    samples = [_key(text, len(table)) for text in arguments.samples or [f"0:{i}" for i in range(min(6, len(table)))]]
    together = config.data.clips_per_video
    keys = [SampleKey(*sample, clip=clip) for sample in samples for clip in range(together)]
    shown = (
        np.linspace(0, config.data.num_frames - 1, min(arguments.frames, config.data.num_frames)).round().astype(int)
    )

    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(shown), 2.0 * len(keys)))
    figure.subplots_adjust(left=0.01, right=0.99, wspace=0.04, hspace=0.3, bottom=0.01, top=1 - 0.4 / (2 * len(keys)))
    rows = figure.subplots(len(keys), len(shown), squeeze=False)
    for key, axes in zip(keys, rows, strict=True):
        clip, (epoch, index, _) = clips[key], key.draw
        for axis, t in zip(axes, shown, strict=True):
            axis.imshow(clip.frames[t].numpy())
            axis.set_axis_off()
        name, drawn = table.name(clip.video), clips.draw(epoch, index, len(clip.failures), key.clip)
        shown_classes = np.flatnonzero(clip.target) if table.multi_label else [clip.target]
        label = ", ".join(table.classes[k] for k in shown_classes) or "none"
        which = f"epoch {epoch}, index {index}" + (f", clip {key.clip}" if together > 1 else "")
        caption = f"{which}: {name}, class {label}\n{drawn}"
        caption += f", {clips.augmentation}" if clips.augmentation else ""
        if clip.failures:
            caption += f", instead of {table.name(index)}: {clip.failures[0].reason}"
        axes[0].set_title(caption, loc="left", fontsize=8)
    figure.savefig(arguments.picture, dpi=110)
    print(f"{arguments.picture}: {len(samples)} samples of {table.source}")


def _key(text: str, num_videos: int) -> tuple[int, int]:
    epoch, _, index = text.partition(":")
    if not (epoch.isdigit() and index.isdigit() and int(index) < num_videos):
        raise UserError(f"--samples {text}: give EPOCH:INDEX with an index below {num_videos}, such as 0:3.")
    return int(epoch), int(index)


if __name__ == "__main__":
    main()
