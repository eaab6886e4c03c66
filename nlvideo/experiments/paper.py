"""The rows of the papers' ablation tables: which experiment each is, and what the paper reports for it.

Non-local Neural Networks (arXiv 1711.07971), Tables 2a to 2g, and GCNet (arXiv 1904.11492) on Kinetics-400: percent of
videos, with the paper's own evaluation. The sweeps over the same rows are configs/ablation/*.yaml.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of a table. Differences and relative costs are against the last baseline above it."""

    label: str
    experiment: str
    baseline: bool = False


class Table(NamedTuple):
    title: str
    rows: tuple[Row, ...]


# top-1, top-5 of every experiment that a table has; GCNet's are recalled, not read again.
FIGURES = {
    "c2d_r50": (71.8, 89.7),
    "c2d_r50_nl1_gaussian": (72.5, 90.2),
    "c2d_r50_nl1": (72.7, 90.5),
    "c2d_r50_nl1_dot_product": (72.9, 90.3),
    "c2d_r50_nl1_concatenation": (72.8, 90.5),
    "c2d_r50_nl1_res2": (72.7, 90.3),
    "c2d_r50_nl1_res3": (72.9, 90.4),
    "c2d_r50_nl1_res5": (72.3, 90.1),
    "c2d_r50_nl5": (73.8, 91.0),
    "c2d_r50_nl10": (74.3, 91.2),
    "c2d_r50_nl5_space": (72.9, 90.8),
    "c2d_r50_nl5_time": (73.1, 90.5),
    "c2d_r101": (73.1, 91.0),
    "c2d_r101_nl1": (74.3, 91.3),
    "c2d_r101_nl5": (75.1, 91.7),
    "c2d_r101_nl10": (75.1, 91.6),
    "c2d_r101_nl5_space": (74.4, 91.3),
    "c2d_r101_nl5_time": (74.4, 90.5),
    "i3d_333_r101": (74.1, 91.2),
    "i3d_r50": (73.3, 90.7),
    "i3d_r50_nl5": (74.9, 91.6),
    "i3d_r101": (74.4, 91.1),
    "i3d_r101_nl5": (76.0, 92.1),
    "c2d_r50_128x1_paper": (73.8, 91.2),
    "i3d_r50_128x1_paper": (74.9, 91.7),
    "i3d_r50_nl5_128x1_paper": (76.5, 92.6),
    "c2d_r101_128x1_paper": (75.3, 91.8),
    "i3d_r101_128x1_paper": (76.4, 92.7),
    "i3d_r101_nl5_128x1_paper": (77.7, 93.3),
    "slow_r50": (74.94, 91.90),
    "slow_r50_nl5": (75.95, 92.29),
    "slow_r50_snl5": (75.76, 92.44),
    "slow_r50_gc5": (75.85, 92.25),
    "slow_r50_gc_all": (76.00, 92.34),
}

C2D_R50 = Row("C2D R50", "c2d_r50", True)
C2D_R101 = Row("C2D R101", "c2d_r101", True)

TABLES = {
    "2a": Table(
        "instantiations: one block in res4",
        (
            C2D_R50,
            Row("gaussian", "c2d_r50_nl1_gaussian"),
            Row("embedded gaussian", "c2d_r50_nl1"),
            Row("dot product", "c2d_r50_nl1_dot_product"),
            Row("concatenation", "c2d_r50_nl1_concatenation"),
        ),
    ),
    "2b": Table(
        "stages: one block",
        (
            C2D_R50,
            Row("res2", "c2d_r50_nl1_res2"),
            Row("res3", "c2d_r50_nl1_res3"),
            Row("res4", "c2d_r50_nl1"),
            Row("res5", "c2d_r50_nl1_res5"),
        ),
    ),
    "2c": Table(
        "deeper non-local models",
        (
            C2D_R50,
            Row("1 block", "c2d_r50_nl1"),
            Row("5 blocks", "c2d_r50_nl5"),
            Row("10 blocks", "c2d_r50_nl10"),
            C2D_R101,
            Row("1 block", "c2d_r101_nl1"),
            Row("5 blocks", "c2d_r101_nl5"),
            Row("10 blocks", "c2d_r101_nl10"),
        ),
    ),
    "2d": Table(
        "space, time, spacetime: 5 blocks",
        (
            C2D_R50,
            Row("space-only", "c2d_r50_nl5_space"),
            Row("time-only", "c2d_r50_nl5_time"),
            Row("spacetime", "c2d_r50_nl5"),
            C2D_R101,
            Row("space-only", "c2d_r101_nl5_space"),
            Row("time-only", "c2d_r101_nl5_time"),
            Row("spacetime", "c2d_r101_nl5"),
        ),
    ),
    "2e": Table(
        "non-local against 3D convolution",
        (
            C2D_R101,
            Row("I3D 3x3x3", "i3d_333_r101"),
            Row("I3D 3x1x1", "i3d_r101"),
            Row("NL C2D, 5 blocks", "c2d_r101_nl5"),
        ),
    ),
    "2f": Table(
        "non-local and 3D convolution, 5 blocks",
        (
            C2D_R50,
            Row("I3D", "i3d_r50"),
            Row("NL I3D", "i3d_r50_nl5"),
            C2D_R101,
            Row("I3D", "i3d_r101"),
            Row("NL I3D", "i3d_r101_nl5"),
        ),
    ),
    "2g": Table(
        "longer clips: 128 frames",
        (
            Row("C2D R50", "c2d_r50_128x1_paper", True),
            Row("I3D", "i3d_r50_128x1_paper"),
            Row("NL I3D", "i3d_r50_nl5_128x1_paper"),
            Row("C2D R101", "c2d_r101_128x1_paper", True),
            Row("I3D", "i3d_r101_128x1_paper"),
            Row("NL I3D", "i3d_r101_nl5_128x1_paper"),
        ),
    ),
    "gcnet": Table(
        "GCNet: context blocks in Slow R50 8x8",
        (
            Row("Slow R50", "slow_r50", True),
            Row("5 non-local", "slow_r50_nl5"),
            Row("5 simplified non-local", "slow_r50_snl5"),
            Row("5 global context", "slow_r50_gc5"),
            Row("5 squeeze-and-excitation", "slow_r50_se5"),
            Row("simplified non-local everywhere", "slow_r50_snl_all"),
            Row("global context everywhere", "slow_r50_gc_all"),
            Row("5 global context, ratio 8", "slow_r50_gc5_r8"),
            Row("ratio 16", "slow_r50_gc5_r16"),
            Row("ratio 32", "slow_r50_gc5_r32"),
            Row("average, add", "slow_r50_gc5_average"),
            Row("attention, scale", "slow_r50_gc5_mul"),
            Row("average, scale", "slow_r50_gc5_average_mul"),
        ),
    ),
}
