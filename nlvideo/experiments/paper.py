"""The papers' ablation tables: the experiment behind each row, and the accuracy that the paper reports for it.

Non-local Neural Networks (arXiv 1711.07971), Tables 2a to 2g, and GCNet (arXiv 1904.11492), both on Kinetics-400 and
evaluated as in the paper. configs/ablation/*.yaml sweeps over the same rows.
"""

from typing import NamedTuple


class TableRow(NamedTuple):
    """A row of a table; its gain and its relative cost refer to the nearest baseline above it."""

    label: str
    experiment: str  # a file of configs/experiment
    baseline: bool = False


class PaperTable(NamedTuple):
    """A table of a paper; its first row is a baseline."""

    title: str
    rows: tuple[TableRow, ...]


UNCHECKED = {"gcnet"}  # tables whose accuracies are quoted from memory and have not been checked against the paper
# Top-1 and top-5 in percent.
PAPER_ACCURACIES = {
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

C2D_R50 = TableRow("C2D R50", "c2d_r50", True)
C2D_R101 = TableRow("C2D R101", "c2d_r101", True)

TABLES = {
    "2a": PaperTable(
        "instantiations: one block in res4",
        (
            C2D_R50,
            TableRow("gaussian", "c2d_r50_nl1_gaussian"),
            TableRow("embedded gaussian", "c2d_r50_nl1"),
            TableRow("dot product", "c2d_r50_nl1_dot_product"),
            TableRow("concatenation", "c2d_r50_nl1_concatenation"),
        ),
    ),
    "2b": PaperTable(
        "stages: one block",
        (
            C2D_R50,
            TableRow("res2", "c2d_r50_nl1_res2"),
            TableRow("res3", "c2d_r50_nl1_res3"),
            TableRow("res4", "c2d_r50_nl1"),
            TableRow("res5", "c2d_r50_nl1_res5"),
        ),
    ),
    "2c": PaperTable(
        "deeper non-local models",
        (
            C2D_R50,
            TableRow("1 block", "c2d_r50_nl1"),
            TableRow("5 blocks", "c2d_r50_nl5"),
            TableRow("10 blocks", "c2d_r50_nl10"),
            C2D_R101,
            TableRow("1 block", "c2d_r101_nl1"),
            TableRow("5 blocks", "c2d_r101_nl5"),
            TableRow("10 blocks", "c2d_r101_nl10"),
        ),
    ),
    "2d": PaperTable(
        "space, time, spacetime: 5 blocks",
        (
            C2D_R50,
            TableRow("space-only", "c2d_r50_nl5_space"),
            TableRow("time-only", "c2d_r50_nl5_time"),
            TableRow("spacetime", "c2d_r50_nl5"),
            C2D_R101,
            TableRow("space-only", "c2d_r101_nl5_space"),
            TableRow("time-only", "c2d_r101_nl5_time"),
            TableRow("spacetime", "c2d_r101_nl5"),
        ),
    ),
    "2e": PaperTable(
        "non-local against 3D convolution",
        (
            C2D_R101,
            TableRow("I3D 3x3x3", "i3d_333_r101"),
            TableRow("I3D 3x1x1", "i3d_r101"),
            TableRow("NL C2D, 5 blocks", "c2d_r101_nl5"),
        ),
    ),
    "2f": PaperTable(
        "non-local and 3D convolution, 5 blocks",
        (
            C2D_R50,
            TableRow("I3D", "i3d_r50"),
            TableRow("NL I3D", "i3d_r50_nl5"),
            C2D_R101,
            TableRow("I3D", "i3d_r101"),
            TableRow("NL I3D", "i3d_r101_nl5"),
        ),
    ),
    "2g": PaperTable(
        "longer clips: 128 frames",
        (
            TableRow("C2D R50", "c2d_r50_128x1_paper", True),
            TableRow("I3D", "i3d_r50_128x1_paper"),
            TableRow("NL I3D", "i3d_r50_nl5_128x1_paper"),
            TableRow("C2D R101", "c2d_r101_128x1_paper", True),
            TableRow("I3D", "i3d_r101_128x1_paper"),
            TableRow("NL I3D", "i3d_r101_nl5_128x1_paper"),
        ),
    ),
    "gcnet": PaperTable(
        "GCNet: context blocks in Slow R50 8x8",
        (
            TableRow("Slow R50", "slow_r50", True),
            TableRow("5 non-local", "slow_r50_nl5"),
            TableRow("5 simplified non-local", "slow_r50_snl5"),
            TableRow("5 global context", "slow_r50_gc5"),
            TableRow("5 squeeze-and-excitation", "slow_r50_se5"),
            TableRow("simplified non-local everywhere", "slow_r50_snl_all"),
            TableRow("global context everywhere", "slow_r50_gc_all"),
            TableRow("5 global context, ratio 8", "slow_r50_gc5_r8"),
            TableRow("ratio 16", "slow_r50_gc5_r16"),
            TableRow("ratio 32", "slow_r50_gc5_r32"),
            TableRow("average, add", "slow_r50_gc5_average"),
            TableRow("attention, scale", "slow_r50_gc5_mul"),
            TableRow("average, scale", "slow_r50_gc5_average_mul"),
        ),
    ),
}
