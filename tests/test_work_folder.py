"""Hidden folders of results in the making, and what is left of those of killed processes."""

import os
import signal

import pytest

from amct_onnx.formats.model_file import write_files
from amct_onnx.formats.work_folder import work_folder

fcntl = pytest.importorskip("fcntl", reason="folders are locked with it")


def hidden(folder):
    return {path for path in folder.iterdir() if path.name.startswith(".")}


def left_behind(folder):
    """What a process leaves that is killed while it works there."""
    child = os.fork()
    if child == 0:
        with work_folder(folder) as work:
            (work / "new").mkdir()
            (work / "new" / "half").write_text("half of a mod")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = hidden(folder)
    return left


def test_nothing_is_left_of_a_folder(tmp_path):
    with work_folder(tmp_path) as work:
        (work / "some" / "more").mkdir(parents=True)
        assert hidden(tmp_path) == {work}
    assert not hidden(tmp_path)


def test_the_next_call_removes_what_a_killed_one_left(tmp_path):
    left_behind(tmp_path)
    write_files({tmp_path / "a.txt": "a"})
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt"}


def test_folders_in_use_and_those_of_others_stay(tmp_path):
    (tmp_path / ".amct_onnx-mine").mkdir()
    (tmp_path / ".amct_onnx-mine" / "notes.txt").write_text("mine")
    with work_folder(tmp_path) as work:
        (work / "half").write_text("half")
        write_files({tmp_path / "a.txt": "a"})
        assert (work / "half").exists()
    assert (tmp_path / ".amct_onnx-mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("is_there", [False, True])
def test_the_only_copy_of_a_file_is_not_removed(tmp_path, is_there):
    """Where a system has no second names, a file that is replaced is for a moment in such a folder alone."""
    left = left_behind(tmp_path)
    (left / "old net.onnx").write_text("old")
    if is_there:
        (tmp_path / "net.onnx").write_text("new")
    write_files({tmp_path / "a.txt": "a"})
    assert left.exists() is not is_there


def test_a_directory_that_takes_no_files_is_said_to(tmp_path):
    with pytest.raises(OSError, match="No such file"), work_folder(tmp_path / "none"):
        pass
