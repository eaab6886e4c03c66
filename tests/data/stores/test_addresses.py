import pytest

from nlvideo.data.stores.addresses import ObjectPlace, check_address, file_name, is_address, joined, split_shard
from nlvideo.runtime.errors import UserError


@pytest.mark.parametrize("path", ["s3://b/k", "gs://b", "https://h/k", "HTTP://h", "file:///a", "az://b/k"])
def test_addresses(path):
    assert is_address(path)


@pytest.mark.parametrize(
    "path", ["/data/k400", "a b.mp4", "C:\\data", "C://data", "odd:name.mp4", "://x", "", "a/s3://b"]
)
def test_paths(path):
    assert not is_address(path)


@pytest.mark.parametrize(
    "folder, name, whole",
    [
        ("s3://b/k", "train/x y#1%.mp4", "s3://b/k/train/x y#1%.mp4"),
        ("s3://b/k/", "x.mp4", "s3://b/k/x.mp4"),
        ("s3://b/k", "", "s3://b/k"),
        ("https://h/k", "train/x y#1%?.mp4", "https://h/k/train/x%20y%231%25%3F.mp4"),
        ("https://h/k", "https://o/x%20y é#1.mp4", "https://o/x%20y%20%C3%A9%231.mp4"),
        ("https://h/my k/", "x y.mp4", "https://h/my%20k/x%20y.mp4"),
        ("https://h/my%20k", "", "https://h/my%20k"),
        ("/data", "s3://b/x.mp4", "s3://b/x.mp4"),
        ("s3://b/k", "/local/x.mp4", "/local/x.mp4"),
        ("s3://b/k", "gs://c/x.mp4", "gs://c/x.mp4"),
        ("/data", "x.mp4", "/data/x.mp4"),
    ],
)
def test_names_in_folders(folder, name, whole):
    assert joined(folder, name) == whole


@pytest.mark.parametrize(
    "address, message",
    [
        ("s3://key:secret@b/k", "with a user or password"),
        ("https://user@h/k", "with a user or password"),
        ("https://h/k?X-Amz-Signature=secret", "with a query"),
        ("https://h/k#secret", "with # is refused"),
        ("S3://b/k", "write s3:// in small letters"),
        ("https://key:sec/ret-secret@h/k", "is no port"),
        ("s3://key:secret/k", "is no port"),
        ("https://h:65536/k", "is no port"),
        ("https://[::1]:secret/k", "is no port"),
        ("file:///data", "give a folder of this machine"),
        ("az://b/k", "az:// is unknown. Choose from: s3://, gs://, http://, https://"),
        ("s3:///k", "names no bucket"),
    ],
)
def test_refused_addresses_do_not_show_secrets(address, message):
    with pytest.raises(UserError, match=message) as caught:
        check_address(address, "data.root")
    assert "secret" not in str(caught.value) and str(caught.value).startswith("data.root")


@pytest.mark.parametrize(
    "address",
    [
        "s3://b/k@2/x@y#1:2.mp4",
        "https://h:8080/k",
        "http://[::1]:80/k",
        "http://[::1]/k",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/k",
    ],
)
def test_addresses_that_are_fine(address):
    check_address(address, "data.root")


def test_members_of_shards():
    assert split_shard("s3://b/k/shard_00012.tar/CLASS/a b.mp4") == ObjectPlace(
        "s3://b/k/shard_00012.tar", "CLASS/a b.mp4"
    )
    assert split_shard("https://h/s.tar/C/a%20b.mp4") == ObjectPlace("https://h/s.tar", "C/a b.mp4")
    assert split_shard("s3://b/k/x.tar") == ObjectPlace("s3://b/k/x.tar", None)
    assert split_shard("s3://b/tar/x.mp4") == ObjectPlace("s3://b/tar/x.mp4", None)


def test_file_names_keep_their_ending():
    assert file_name("s3://b/k/x.mp4") == "x.mp4"
    assert file_name("https://h/a%2Fb%20c.mp4") == "a_b c.mp4"
    assert file_name("s3://b/.lock") == "_.lock" and file_name("s3://b/k/..") == "_.."
    long = file_name("s3://b/" + "é" * 300 + ".mp4")
    assert long.endswith("é.mp4") and len(long.encode()) <= 200
