from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from omegaconf import OmegaConf

from nlvideo.experiments.paper import PAPER_ACCURACIES, TABLES
from nlvideo.experiments.tables import TrainedRow, num_compared, seed_difference, table_cells, table_lines

CONFIGS = Path(__file__).parents[2] / "configs"


def trained(seed, correct, params=1e6):
    correct = np.array(correct, float)
    return TrainedRow(seed, {"top-1": 100 * correct.mean(), "top-5": 100.0}, correct, params, 2 * params)


def test_a_row_is_compared_with_its_baseline_by_seed_and_video():
    base = [trained(1, [1, 0, 0, 0]), trained(2, [1, 1, 0, 0]), trained(4, [1, 1, 1, 1])]
    own = [trained(2, [1, 1, 1, 0], 2e6), trained(1, [1, 1, 0, 0], 2e6), trained(3, [0, 0, 0, 0], 2e6)]
    found = seed_difference(own, base)
    assert found.num_seeds == 2 and found.value == pytest.approx(25)
    rows = TABLES["2a"].rows
    lines = table_lines(rows, {rows[0].experiment: base, rows[1].experiment: own})
    assert lines[0].difference is None and lines[0].relative_cost == (1, 1)
    assert lines[1].difference == found and lines[1].relative_cost == (2, 2)
    assert lines[1].paper == (72.5, 90.2) and lines[1].paper_difference == pytest.approx(0.7)
    assert not lines[2].runs and lines[2].difference is None and lines[2].relative_cost is None
    by_metric = seed_difference([replace(run, correct=None) for run in own], base)
    assert by_metric.value == pytest.approx(25)


def test_each_rows_p_is_adjusted_for_all_rows_that_are_compared():
    rng, rows = np.random.default_rng(0), TABLES["2a"].rows
    runs = {
        row.experiment: [trained(seed, rng.random(60) < share) for seed in (1, 2, 3)]
        for row, share in zip(rows, (0.5, 0.5, 0.7, 0.75), strict=False)  # the last row is not trained
    }
    lines = table_lines(rows, runs)
    plain = {line.row.label: line.difference.p for line in lines if line.difference}
    low, middle, high = sorted(plain, key=plain.get)
    adjusted = {line.row.label: line.difference.adjusted_p for line in lines if line.difference}
    expected = {low: 3 * plain[low], middle: max(3 * plain[low], 2 * plain[middle])}
    assert adjusted == pytest.approx(expected | {high: max(expected[middle], plain[high])})
    cells = {row[""]: row for row in table_cells(lines)}
    assert cells[high]["p (Holm)"] == f"{adjusted[high]:.3f}" and float(cells[high]["detectable"]) > 5
    assert {cells[rows[0].label][name] for name in ("p", "p (Holm)", "detectable")} == {"-"}


def test_a_single_value_has_neither_an_interval_nor_a_p():
    rows, (base, own) = TABLES["2a"].rows, ([replace(trained(1, c), correct=None)] for c in ([1, 0], [1, 1]))
    cells = table_cells(table_lines(rows, {rows[0].experiment: base, rows[1].experiment: own}))[1]
    assert [cells[name] for name in ("difference", "p", "p (Holm)", "detectable")] == ["+50.00", "-", "-", "-"]


def test_an_interval_says_where_it_is_not_of_the_rows_seeds():
    rows, rng = TABLES["2a"].rows, np.random.default_rng(0)
    runs = {
        row.experiment: [trained(seed, rng.random(60) < share) for seed in seeds]
        for row, share, seeds in zip(rows, (0.3, 0.8, 0.8, 0.8), ((1, 2, 3), (1, 2), (2,), (2, 3, 4)), strict=False)
    }
    lines = table_lines(rows, runs)
    ends = [row["difference"].rpartition("; ")[2] for row in table_cells(lines)]
    assert "to" in ends[1] and ends[2] == "of this seed)" and ends[3] == "2 seeds)"
    assert num_compared(lines) == 3
    one = {name: [replace(run, correct=None) for run in found] for name, found in runs.items()}
    lines = table_lines(rows, one | {rows[1].experiment: one[rows[1].experiment][:1]})
    assert num_compared(lines) == 1  # of the two rows with one seed in common there is no p


def test_the_papers_numbers_keep_their_decimals():
    shown = {row[""]: row["paper"] for row in table_cells(table_lines(TABLES["gcnet"].rows, {}))}
    assert shown["Slow R50"] == "74.94 / 91.9" and shown["global context everywhere"] == "76.0 / 92.34"


def test_every_table_has_a_sweep_over_its_rows_and_every_row_is_an_experiment():
    files = {path.stem.removeprefix("table_"): path for path in (CONFIGS / "ablation").glob("*.yaml")}
    assert files.keys() == TABLES.keys()
    known = {path.stem for path in (CONFIGS / "experiment").glob("*.yaml")}
    for name, table in TABLES.items():
        params = OmegaConf.load(files[name]).hydra.sweeper.params
        swept = [row.strip() for row in params.experiment.split(",")]
        assert swept == [row.experiment for row in table.rows] and known.issuperset(swept)
        assert table.rows[0].baseline
    assert PAPER_ACCURACIES.keys() <= {row.experiment for table in TABLES.values() for row in table.rows}


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_differ_only_in_the_network(name):
    group = "gcnet" if name == "gcnet" else f"table_{name}"
    rows = [row.experiment for row in TABLES[name].rows]
    configs = [composed(f"+ablation={group}", f"experiment={row}", "data.root=x") for row in rows]
    assert all(config.data == configs[0].data and config.optim == configs[0].optim for config in configs)
    assert all(config.output_dir == "outputs/ablation" for config in configs)
    networks = [(config.model.layout, config.model.depth, str(config.block)) for config in configs]
    assert len(set(networks)) == len(networks)
