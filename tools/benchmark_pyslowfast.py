"""Training steps of PySlowFast's own network against ours, in turn in one process.

    PYTHONPATH=SlowFast python tools/benchmark_pyslowfast.py SlowFast/configs/Kinetics/c2/I3D_NLN_8x8_R50.yaml

SlowFast is a checkout of PySlowFast with the packages that it needs. Theirs is its ResNet as the config file describes
it, its loss and its optimizer, in float32 as shipped, and under bfloat16 autocast; ours is the training program's own
step of i3d_r50_nl5_8x8, in float32 and bfloat16. Both take the same random clips, from uint8 on.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_model import our_step, random_batch
from rich.console import Console
from rich.table import Table

from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.batch import Batch, normalize
from nlvideo.runtime.errors import UserError, reporting_errors

EXPERIMENT = "i3d_r50_nl5_8x8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="I3D_NLN_8x8_R50.yaml of PySlowFast")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=224, help="height and width of the clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of our config")
    arguments = parser.parse_args()
    with reporting_errors():
        benchmark(arguments)


def benchmark(arguments: argparse.Namespace) -> None:
    """Prints the seconds of each step, and PySlowFast's float32 step over it, round by round."""
    overrides = [f"experiment={EXPERIMENT}", "data.root=none", "model.pretrained=null", *arguments.overrides]
    config = compose_train_config(
        [*overrides, f"data.crop_size={arguments.crop}", f"optim.batch_size={arguments.batch}"]
    )
    clips, cpu = random_batch(config, arguments.batch), torch.device("cpu")
    steps = {
        "PySlowFast, float32": pyslowfast_step(arguments, config.data, clips, False),
        "PySlowFast, bfloat16 autocast": pyslowfast_step(arguments, config.data, clips, True),
        "ours, float32": our_step(config, clips, cpu, "float32", False),
        "ours, bfloat16": our_step(config, clips, cpu, "bfloat16", False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + arguments.rounds):  # the first warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    shape = f"{config.data.num_frames} x {arguments.crop} x {arguments.crop}"
    title = f"{arguments.batch} clips of {shape}, {torch.get_num_threads()} CPU threads, {arguments.rounds} rounds"
    table = Table("step", "seconds", "PySlowFast float32 / this", "PySlowFast bfloat16 / this", title=title)
    for name, (_, *times) in seconds.items():
        ratios = [_ratio(seconds[rival][1:], times) for rival in list(steps)[:2]]
        table.add_row(name, f"{statistics.median(times):.2f}", *ratios)
    Console(width=130).print(table)


def pyslowfast_step(arguments: argparse.Namespace, data: DataConfig, clips: Batch, autocast: bool) -> Callable:
    """Returns a training step of PySlowFast: its network, loss and optimizer.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        from slowfast.config.defaults import get_cfg
        from slowfast.models.losses import get_loss_func
        from slowfast.models.optimizer import construct_optimizer
        from slowfast.models.video_model_builder import ResNet
    except ImportError as error:
        raise UserError(f"PySlowFast cannot be imported ({error}); put its checkout on PYTHONPATH.") from error
    theirs = get_cfg()
    theirs.merge_from_file(str(arguments.config))
    theirs.NUM_GPUS, theirs.DATA.TRAIN_CROP_SIZE = 0, arguments.crop
    theirs.DATA.TEST_CROP_SIZE = arguments.crop
    torch.manual_seed(0)
    network = ResNet(theirs).train()
    optimizer, loss_of = construct_optimizer(network, theirs), get_loss_func(theirs.MODEL.LOSS_FUNC)(reduction="mean")
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)

    def step() -> None:
        inputs = normalize(clips.clips, mean, std, torch.float32).contiguous()
        with torch.autocast("cpu", torch.bfloat16, autocast):
            loss = loss_of(network([inputs]), clips.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _ratio(theirs: list[float], times: list[float]) -> str:
    ratios = [a / b for a, b in zip(theirs, times, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
