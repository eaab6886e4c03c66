from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from omegaconf import OmegaConf
from scipy import stats

from nlvideo.experiments.paper import PAPER_ACCURACIES, TABLES
from nlvideo.experiments.tables import TrainedRow, mean_and_interval, seed_difference, table_lines

CONFIGS = Path(__file__).parents[2] / "configs"


def test_one_seed_or_one_value_per_seed_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for differences in (rng.normal(0.2, 1, (1, 50)), rng.normal(0.2, 1, (5, 1))):
        mean, half, p = mean_and_interval(differences)
        theirs = stats.ttest_1samp(differences.ravel(), 0)
        assert p == pytest.approx(theirs.pvalue) and mean == pytest.approx(differences.mean())
        assert mean - half == pytest.approx(theirs.confidence_interval(0.95).low)
    assert np.isnan(mean_and_interval(np.array([[0.5]]))[1:]).all()
    assert mean_and_interval(np.zeros((3, 20))) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("seeds", "videos", "over_seeds", "over_videos", "residual"),
    [(3, 160, 0.02, 0.2, 0.5), (3, 160, 0.1, 0.2, 0.5), (5, 300, 0.0, 0.3, 0.3), (3, 200, 0.3, 0.1, 0.5)],
)
def test_intervals_cover_the_truth_at_their_confidence_level(seeds, videos, over_seeds, over_videos, residual):
    rng, covered, repeats = np.random.default_rng(1), 0, 600
    for _ in range(repeats):
        drawn = rng.normal(0, over_seeds, (seeds, 1)) + rng.normal(0, over_videos, (1, videos))
        mean, half, p = mean_and_interval(0.1 + drawn + rng.normal(0, residual, (seeds, videos)))
        covered += abs(mean - 0.1) <= half
    assert 0.91 < covered / repeats < 0.985


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
