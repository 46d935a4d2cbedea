"""Which lines tell of what went wrong."""

import os
from pathlib import Path

import pytest

from biruda.master.joblog import errors
from biruda.master.joblog.errors import error_offsets, looks_like_an_error

TELLING = [
    b"main.c:3:5: error: expected ';' before 'return'",
    b"\x1b[01m\x1b[Kmain.c:3:5:\x1b[m \x1b[01;31m\x1b[Kerror: \x1b[mexpected",
    b"make: *** [Makefile:12: all] Error 2",
    b"testcurl: FAILED 1 of 1,412",
    b"Traceback (most recent call last):",
    b"ValueError: no such thing",
    b"java.lang.NullPointerException: null",
    b"/usr/bin/ld: main.o: undefined reference to `f'",
    b"sh: 1: nonsense: command not found",
    b"fatal: not a git repository",
    b"thread 'main' panicked at src/main.rs:2",
    b"Segmentation fault (core dumped)",
    b"cannot find -lcurl",
    b"biruda: step 2 (check): still running after 5 s",
]
HARMLESS = [
    b"gcc -Wall -Werror -c error.c -o error.o",
    b"0 errors, 0 warnings",
    b"no errors found",
    b"errors: 0",
    b"failed=0",
    b"checking for error_at_line... yes",
    b"  CC lib/fail.o",
    b"configure --enable-error-messages",
    b"all is well",
    b"",
]


@pytest.mark.parametrize("line", TELLING)
def test_lines_that_tell_of_an_error(line: bytes) -> None:
    assert looks_like_an_error(line)


@pytest.mark.parametrize("line", HARMLESS)
def test_lines_that_only_sound_like_it(line: bytes) -> None:
    assert not looks_like_an_error(line)


def test_errors_are_found_in_the_asked_part_whatever_the_pieces(tmp_path: Path) -> None:
    lines = [b"quiet line %d" % number for number in range(200)]
    for number in (3, 90, 150, 199):
        lines[number] = b"x.c:%d: error: wrong" % number
    content = b"\n".join(lines)
    starts = {number: content.index(lines[number]) for number in (3, 90, 150, 199)}
    (tmp_path / "log").write_bytes(content)
    fd = os.open(tmp_path / "log", os.O_RDONLY)
    for piece in (64, 1000, 1 << 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(errors, "PIECE_BYTES", piece)
            assert error_offsets(fd, 0, len(content), 100) == list(starts.values())
            assert error_offsets(fd, starts[90], starts[199], 100) == [starts[90], starts[150]]
            assert error_offsets(fd, 0, len(content), 2) == [starts[3], starts[90]]
    os.close(fd)


def test_a_hostile_line_takes_no_time_that_grows_with_its_square(tmp_path: Path) -> None:
    for word in (b"-", b"a", b"error", b"./-", b"a.", b"error ", b"--error-", b"\x1b[0;"):
        looks_like_an_error(word * 100_000)  # the limit of each test is what this is held to
