"""Files and folders are whole or absent."""

import pytest

from mrigsure.files import atomic, atomic_folder


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_takes_the_place_of_the_one_before_when_all_is_written(tmp_path, fails):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "old").touch()
    try:
        with atomic_folder(tmp_path / "series") as partial:
            (partial / "new").touch()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["old" if fails else "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_a_file_that_fails_leaves_the_one_before(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
