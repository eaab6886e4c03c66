"""From a config to its tables: class names from the training list, and what is printed of the lists."""

import pytest
from conftest import composed

from nlvideo.build.tables import read_train_table, read_val_table


def data_of(folder, *overrides, train="path,label\na.mp4,sit\nb.mp4,run\n", val="path,label\na.mp4,run\n"):
    for name, text in (("train.csv", train), ("val.csv", val)):
        (folder / name).write_text(text)
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    return composed("data=list", f"data.root={folder}", "model.pretrained=null", *overrides).data


def test_the_training_lists_names_are_the_classes_of_both(tmp_path):
    data = data_of(tmp_path)
    train = read_train_table(data)
    assert train.classes == ("run", "sit") and train.targets.tolist() == [1, 0]
    val = read_val_table(data, train.classes)
    assert val.classes == train.classes and val.targets.tolist() == [0]
    with pytest.raises(ValueError, match="val.csv, line 2: label 'walk' of a.mp4 is none of the 2 classes"):
        read_val_table(data_of(tmp_path, val="path,label\na.mp4,walk\n"), train.classes)


def test_the_order_of_a_class_file_gives_the_numbers(tmp_path):
    (tmp_path / "names.csv").write_text("id,name\n1,run\n0,sit\n2,walk\n")
    data = data_of(tmp_path, "data.classes=names.csv")
    assert read_train_table(data).classes == ("sit", "run", "walk")
    assert read_train_table(data).targets.tolist() == [0, 1]


def test_names_are_counted_against_num_classes(tmp_path):
    with pytest.raises(ValueError, match="data.num_classes=3, but .*train.csv has 2 classes"):
        read_train_table(data_of(tmp_path, "data.num_classes=3"))


def test_several_labels_need_their_key(tmp_path):
    text = "path,labels\na.mp4,1;0\nb.mp4,2\n"
    with pytest.raises(ValueError, match="line 2: .*set data.multi_label=true"):
        read_train_table(data_of(tmp_path, train=text))
    data = data_of(tmp_path, "data.multi_label=true", train=text)
    assert read_train_table(data).targets.tolist() == [[True, True, False], [False, False, True]]
    with pytest.raises(ValueError, match="no video of class 1 but of higher ones up to 2"):
        read_train_table(data_of(tmp_path, "data.multi_label=true", train="path,labels\na.mp4,0\nb.mp4,2\n"))


def test_class_folders_may_be_multi_label_data(tmp_path):
    for name in ("train/run/a.mp4", "train/sit/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    data = composed("data=folder", f"data.root={tmp_path}", "model.pretrained=null", "data.multi_label=true").data
    assert read_train_table(data).targets.tolist() == [[True, False], [False, True]]


def test_charades_is_multi_label_without_the_key_and_others_refuse_it(tmp_path):
    data = composed("data=charades", f"data.root={tmp_path}", "model.pretrained=null").data
    assert data.is_multi_label and not data.multi_label
    with pytest.raises(ValueError, match="data.multi_label=true: the videos of data.format=ucf101 have one class each"):
        composed("data=ucf101", f"data.root={tmp_path}", "model.pretrained=null", "data.multi_label=true")


def test_missing_files_are_in_the_note(tmp_path):
    data = data_of(tmp_path, train="path,label,fold\na.mp4,0,1\nb.mp4,1,2\ngone.mp4,1,3\n")
    expected = "train.csv: columns path, label (ignored: fold); 3 videos of 2 classes (labels are numbers)"
    assert read_train_table(data).note == f"{expected}; missing files: 1 (gone.mp4)"
