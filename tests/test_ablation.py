from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from omegaconf import OmegaConf
from scipy import stats

from nlvideo.experiments.paper import FIGURES, TABLES
from nlvideo.experiments.tables import Trained, difference, lines_of, mean_and_spread

CONFIGS = Path(__file__).parent.parent / "configs"


def test_one_seed_or_one_value_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for differences in (rng.normal(0.2, 1, (1, 50)), rng.normal(0.2, 1, (5, 1))):
        mean, half, p = mean_and_spread(differences)
        theirs = stats.ttest_1samp(differences.ravel(), 0)
        assert p == pytest.approx(theirs.pvalue) and mean == pytest.approx(differences.mean())
        assert mean - half == pytest.approx(theirs.confidence_interval(0.95).low)
    assert np.isnan(mean_and_spread(np.array([[0.5]]))[1:]).all()
    assert mean_and_spread(np.zeros((3, 20))) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("seeds", "videos", "over_seeds", "over_videos", "rest"),
    [(3, 160, 0.02, 0.2, 0.5), (3, 160, 0.1, 0.2, 0.5), (5, 300, 0.0, 0.3, 0.3), (3, 200, 0.3, 0.1, 0.5)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, videos, over_seeds, over_videos, rest):
    rng, covered, tries = np.random.default_rng(1), 0, 600
    for _ in range(tries):
        drawn = rng.normal(0, over_seeds, (seeds, 1)) + rng.normal(0, over_videos, (1, videos))
        mean, half, p = mean_and_spread(0.1 + drawn + rng.normal(0, rest, (seeds, videos)))
        covered += abs(mean - 0.1) <= half
    assert 0.91 < covered / tries < 0.985


def trained(seed, right, params=1e6):
    right = np.array(right, float)
    return Trained(seed, {"top-1": 100 * right.mean(), "top-5": 100.0}, right, params, 2 * params)


def test_a_row_is_compared_with_its_baseline_by_seed_and_video():
    base = [trained(1, [1, 0, 0, 0]), trained(2, [1, 1, 0, 0]), trained(4, [1, 1, 1, 1])]
    own = [trained(2, [1, 1, 1, 0], 2e6), trained(1, [1, 1, 0, 0], 2e6), trained(3, [0, 0, 0, 0], 2e6)]
    found = difference(own, base)
    assert found.num_seeds == 2 and found.value == pytest.approx(25)
    rows = TABLES["2a"].rows
    lines = lines_of(rows, {rows[0].experiment: base, rows[1].experiment: own})
    assert lines[0].difference is None and lines[0].relative == (1, 1)
    assert lines[1].difference == found and lines[1].relative == (2, 2)
    assert lines[1].paper == (72.5, 90.2) and lines[1].paper_difference == pytest.approx(0.7)
    assert not lines[2].runs and lines[2].difference is None and lines[2].relative is None
    by_metric = difference([run.__class__(**vars(run) | {"right": None}) for run in own], base)
    assert by_metric.value == pytest.approx(25)


def test_every_table_is_swept_row_by_row_and_every_row_is_an_experiment():
    files = {path.stem.removeprefix("table_"): path for path in (CONFIGS / "ablation").glob("*.yaml")}
    assert files.keys() == TABLES.keys()
    known = {path.stem for path in (CONFIGS / "experiment").glob("*.yaml")}
    for name, table in TABLES.items():
        params = OmegaConf.load(files[name]).hydra.sweeper.params
        swept = [row.strip() for row in params.experiment.split(",")]
        assert swept == [row.experiment for row in table.rows] and known.issuperset(swept)
        assert table.rows[0].baseline
    assert FIGURES.keys() <= {row.experiment for table in TABLES.values() for row in table.rows}


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_differ_in_the_network_alone(name):
    group = "gcnet" if name == "gcnet" else f"table_{name}"
    rows = [row.experiment for row in TABLES[name].rows]
    configs = [composed(f"+ablation={group}", f"experiment={row}", "data.root=x") for row in rows]
    assert all(config.data == configs[0].data and config.optim == configs[0].optim for config in configs)
    assert all(config.output_dir == "outputs/ablation" for config in configs)
    networks = [(config.model.layout, config.model.depth, str(config.block)) for config in configs]
    assert len(set(networks)) == len(networks)
