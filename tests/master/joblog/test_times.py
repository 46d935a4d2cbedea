"""When lines came: kept beside the log, sparse, over restarts."""

from pathlib import Path

from biruda.master.joblog.times import FINE_MS, TimesWriter, read_times


def test_times_are_kept_sparse_and_looked_up_by_offset(tmp_path: Path) -> None:
    path = tmp_path / ".index" / "7.1.times"
    writer = TimesWriter(str(path))
    for offset, elapsed_ms in ((0, 3), (10, 4), (20, 500), (30, 1200), (40, 1200 + FINE_MS - 1), (50, 1300)):
        writer.note(offset, elapsed_ms)
    writer.close()
    times = read_times(path)
    assert [times.at(offset) for offset in (0, 19, 20, 29, 30, 45, 50, 1000)] == [
        3,
        3,
        500,
        500,
        1200,
        1200,
        1300,
        1300,
    ]
    assert path.stat().st_size == 4 * 16


def test_a_job_that_is_over_at_once_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / ".index" / "7.1.times"
    writer = TimesWriter(str(path))
    writer.note(0, 3)
    writer.note(90, 900)
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert read_times(path).at(0) is None


def test_a_restarted_master_goes_on_in_the_file_and_another_job_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / ".index" / "7.1.times"
    for offset, elapsed_ms in ((0, 1000), (100, 5000)):
        writer = TimesWriter(str(path))
        writer.note(offset, elapsed_ms)
        writer.close()
    with path.open("ab") as file:
        file.write(b"half")  # killed while it wrote
    assert [read_times(path).at(offset) for offset in (0, 100)] == [1000, 5000]
    writer = TimesWriter(str(path))
    writer.note(0, 2000)
    assert [read_times(path).at(offset) for offset in (0, 100)] == [2000, 2000]
    writer.clear()
    assert not path.exists()


def test_a_disk_without_room_costs_the_times_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = TimesWriter(str(tmp_path / "file" / "7.1.times"))
    writer.note(0, 1000)
    writer.note(10, 9000)
    writer.close()
    assert (tmp_path / "file").read_text() == ""
