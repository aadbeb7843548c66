"""Where a student cannot be written: one line, and nothing changes."""

import os
from pathlib import Path

import onnx
import pytest
from commands import MLP, assert_refused, contents


def itself(path):
    return path


def itself_otherwise_spelled(path):
    return path.parent / "sub" / ".." / path.name


def itself_relative(path):
    return Path(os.path.relpath(path))


def link_to_it(path):
    (path.parent / "link.onnx").symlink_to(path)
    return path.parent / "link.onnx"


def hard_link_to_it(path):
    os.link(path, path.parent / "link.onnx")
    return path.parent / "link.onnx"


def through_a_linked_folder(path):
    (path.parent / "folder").symlink_to(path.parent)
    return path.parent / "folder" / path.name


def in_a_missing_folder(path):
    return path.parent / "none" / "student.onnx"


def in_a_file_as_folder(path):
    return path / "student.onnx"


def a_folder_itself(path):
    return path.parent / "sub"


def in_a_folder_that_takes_no_files(path):
    if not Path("/proc/version").exists():
        pytest.skip("there is no /proc")
    return Path("/proc/student.onnx")


def in_a_write_protected_folder(path):
    folder = path.parent / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    return folder / "student.onnx"


DESTINATIONS = {
    itself: "the model reads",
    itself_otherwise_spelled: "the model reads",
    itself_relative: "the model reads",
    link_to_it: "the model reads",
    hard_link_to_it: "the model reads",
    through_a_linked_folder: "the model reads",
    in_a_missing_folder: "the folder .*none does not exist",
    in_a_file_as_folder: "the folder .*teacher.onnx does not exist",
    a_folder_itself: "it is a folder",
    in_a_folder_that_takes_no_files: "/proc/student.onnx: ",
    in_a_write_protected_folder: "cannot write .*Permission denied",
}


@pytest.mark.parametrize("place", DESTINATIONS, ids=lambda place: place.__name__)
def test_bad_destinations(cli, teacher, place):
    (teacher.parent / "sub").mkdir()
    path = place(teacher)
    before = contents(teacher.parent)
    for options in ((), ("--no-verify",), ("--json",)):
        result = cli("widen", teacher, "-o", path, "--factor", "2", *options)
        assert_refused(result, 2, f"cannot write .*{DESTINATIONS[place]}")
        assert result.out == "" or "takes_no_files" in place.__name__  # which shows when the file is made
        assert contents(teacher.parent) == before


def test_the_teachers_data_file_is_no_destination(cli, tmp_path):
    source = tmp_path / "teacher.onnx"
    onnx.save(onnx.load(MLP), source, save_as_external_data=True, location="weights", size_threshold=100)
    before = contents(tmp_path)
    result = cli("widen", source, "-o", tmp_path / "weights", "--factor", "2")
    assert_refused(result, 2, "cannot write .*weights: the model reads")
    assert contents(tmp_path) == before
