from nlvideo.training.curves import curves_figure

TRAIN = {"split": "train", "step": 1, "loss": 2.0, "lr": 0.1, "clips_per_second": 9.0}
OLD = {"split": "val", "step": 1, "top1": 0.25, "top5": 0.5}  # as 0.1 wrote it


def lines(*rows) -> dict[str, dict[str, float]]:
    """Returns {title: {name: the last value}} of the picture."""
    axes = curves_figure(rows).axes
    return {one.get_title(): {line.get_label(): line.get_ydata()[-1] for line in one.lines} for one in axes}


def test_the_losses_share_a_panel_and_the_accuracies_another():
    found = lines(TRAIN, OLD | {"mean_class_accuracy": 0.2, "loss": 3.0})
    assert found["loss"] == {"training": 2, "validation, one centre clip": 3}
    assert found["validation, one centre clip (%)"] == {"top-1": 25, "top-5": 50, "mean of classes": 20}
    several = lines(TRAIN, {"split": "val", "step": 1, "map": 0.3, "loss": 0.4})
    assert several["validation, one centre clip (%)"] == {"mAP": 30}


def test_runs_that_measured_less_are_drawn_with_what_they_have():
    found = lines(TRAIN, OLD)
    assert found["loss"] == {"training": 2}
    assert found["validation, one centre clip (%)"] == {"top-1": 25, "top-5": 50}
    assert not any(lines().values())


def test_runs_without_validations_have_no_panel_for_them_and_speeds_have_their_names():
    found = lines({"split": "train", "step": 1, "loss": 2.0, "lr": 0.1, "images_per_second": 7.0})
    assert [*found] == ["loss", "learning rate", "images per second"]
    assert found["images per second"] == {"images per second": 7}
