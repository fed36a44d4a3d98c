"""A file is there as a whole or as it was, and nothing else is left."""

import pytest

from acelib.files import replacing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    with replacing(path) as part:
        assert part.parent == path.parent and not path.exists()
        part.write_text("one")
    with replacing(path) as part:
        part.write_text("two")
        assert path.read_text() == "one", "until the end readers see the old file"
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, stop):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as part:
        part.write_text("half")
        raise stop
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "rows.csv"):
        pass
    assert not list(tmp_path.iterdir())
