"""Durations, sizes and names: what people write is what is meant, and nothing that is shown is obeyed by a terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.cli import text


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1m 12s", 72),
        ("2d", 172800),
        ("1.5h", 5400),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("250 ms", 0.25),
        ("5 min", 300),
        ("1s 500ms", 1.5),
        ("0", 0),
    ],
)
def test_durations_as_people_write_them(written: str, seconds: float) -> None:
    assert text.parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", " ", "x", "5x", "-5", "1m1h", "1e3", "s", "h", "1..5s", "1s2", "5 5 5", "1ms1s", "٣s", "1h30", "\n"]
)
def test_what_is_no_duration(written: str) -> None:
    if written == "1h30":  # 30 seconds: a number alone is always seconds
        assert text.parse_duration(written) == 3630
        return
    with pytest.raises(ValueError, match="no duration"):
        text.parse_duration(written)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_durations_round_trip(days: int, hours: int, minutes: int, seconds: int) -> None:
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert text.parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == whole
    assert text.parse_duration(f"{whole}s") == whole


@settings(deadline=None)
@given(st.floats(0.001, 3e8))
def test_a_shown_duration_reads_back_to_what_it_shows(seconds: float) -> None:
    shown = text.duration(seconds)
    unit = (
        0.0005
        if seconds < 0.0995
        else 0.05
        if seconds < 59.95
        else 0.5
        if seconds < 3600
        else 60
        if seconds < 86400
        else 3600
    )
    assert abs(text.parse_duration(shown) - seconds) <= unit + (0.5 if unit > 1 else 1e-9)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0s"),
        (0.0004, "1ms"),
        (0.013, "13ms"),
        (41.23, "41.2s"),
        (59.94, "59.9s"),
        (59.96, "1m 00s"),
        (72, "1m 12s"),
        (3599.7, "1h 00m"),
        (7380, "2h 03m"),
        (100000, "1d 3h"),
    ],
)
def test_durations_as_they_are_shown(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("512Mi", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5g", 3 << 29),
        ("1k", 1024),
        ("1KB", 1000),
        ("3 MB", 3_000_000),
        ("1T", 1 << 40),
    ],
)
def test_sizes_as_people_write_them(written: str, count: int) -> None:
    assert text.parse_size(written) == count


@pytest.mark.parametrize("written", ["", "M", "-1", "1X", "1MM", "0x10", "1e6", "½M", "1 2"])
def test_what_is_no_size(written: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        text.parse_size(written)


@settings(deadline=None)
@given(st.integers(0, 2**63), st.sampled_from(["", "B", "K", "KiB", "M", "Gi", "TiB"]))
def test_sizes_round_trip(count: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "K": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "Gi": 1 << 30, "TiB": 1 << 40}[unit]
    assert text.parse_size(f"{count}{unit}") == pytest.approx(count * factor, rel=1e-15)
    assert text.parse_size(str(count)) == count


@settings(deadline=None)
@given(st.integers(0, 2**59))
def test_a_shown_size_reads_back_to_what_it_shows(count: int) -> None:
    assert text.parse_size(text.size(count)) == pytest.approx(count, rel=0.06)


@settings(deadline=None)
@given(st.text())
def test_nothing_escaped_is_obeyed_by_a_terminal(name: str) -> None:
    escaped = text.escape(name)
    assert escaped.isprintable()
    assert text.escape(escaped) == escaped
    assert name != escaped or name.isprintable()


def test_hostile_names_are_seen() -> None:
    assert text.escape("a\x1b[2Jb\n\x9b\u202e\ud800") == r"a\x1b[2Jb\n\x9b\u202e\ud800"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "now"), (0.4, "now"), (12, "12s ago"), (200, "3m ago"), (9000, "2h ago"), (4e5, "4d ago")],
)
def test_relative_times(seconds: float, shown: str) -> None:
    assert text.ago(seconds) == shown
