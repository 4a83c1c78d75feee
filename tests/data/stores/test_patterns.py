import pytest

from beit.data.stores.patterns import ending_of, expanded


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("x-{9..11}", ["x-9", "x-10", "x-11"]),
        ("x-{3..1}", ["x-3", "x-2", "x-1"]),
        ("s3://b/{a,b}-{0..1}.tar", [f"s3://b/{a}-{n}.tar" for a in "ab" for n in range(2)]),
        ("{a,}", ["a", ""]),
        ("x-{0..2", None),
        ("x-{a}", None),
        ("plain.tar", None),
        ("https://host/x.tar?version=1", None),
    ],
)
def test_braces_stand_for_names(pattern, names):
    assert expanded(pattern) == names


def test_a_file_of_that_very_name_is_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x{0..1}", "y-2.tar", "y-10.tar", "y-1.tar"):
        (tmp_path / name).touch()
    assert expanded("x{0..1}") is None
    assert expanded("y-*.tar") == ["y-1.tar", "y-10.tar", "y-2.tar"]
    assert expanded("{y,z}-?.tar") == ["y-1.tar", "y-2.tar"]
    assert expanded("z-*") == []


def test_too_many_and_what_a_web_server_cannot_list_are_refused():
    with pytest.raises(ValueError, match="10000000 names in braces; expected at most 1000000"):
        expanded("x-{0..9999999}")
    with pytest.raises(ValueError, match=r"h/\*\.tar: a web server does not list its files"):
        expanded("https://h/*.tar")


def test_the_ending_of_a_compressed_tar_has_two_parts():
    assert [
        *map(ending_of, ("a.b/x.TAR", "x.tar.gz", "x.v1.jpg", "x", "https://x/y.tgz?A=b.c"))
    ] == [*(".tar", ".tar.gz", ".jpg", "", ".tgz")]
