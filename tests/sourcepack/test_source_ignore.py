"""The rules of ignore files, one by one; test_source_git.py compares them with git."""

import pytest

from biruda.sourcepack.ignore import Patterns


def ignored(rules: str | bytes, path: str, *, is_directory: bool = False) -> bool | None:
    text = rules.encode() if isinstance(rules, str) else rules
    raw = path.encode()
    return Patterns(text).verdict(raw.rpartition(b"/")[2], raw, is_directory=is_directory)


@pytest.mark.parametrize(
    ("rules", "path", "verdict"),
    [
        ("foo", "foo", True),
        ("foo", "deep/er/foo", True),
        ("foo", "foobar", None),
        ("/foo", "foo", True),
        ("/foo", "a/foo", None),
        ("a/foo", "a/foo", True),
        ("a/foo", "b/a/foo", None),
        ("*.o", "x/y.o", True),
        ("*.o", "y.obj", None),
        ("a/*.o", "a/x.o", True),
        ("a/*.o", "a/b/x.o", None),
        ("**/foo", "foo", True),
        ("**/foo", "a/b/foo", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", None),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", None),
        ("a**b", "axxb", True),
        ("x/a**b", "x/a/b", None),
        ("?", "a", True),
        ("a/?", "a/b", True),
        ("a?b", "a/b", None),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", None),
        ("[^a-c]x", "dx", True),
        ("[]-]", "]", True),
        ("[]-]", "-", True),
        ("[[:digit:]]", "7", True),
        ("[[:nonsense:]]", "n", None),
        ("[abc", "[abc", None),
        (r"\[a", "[a", True),
        (r"[\]]", "]", True),
        (r"\*", "*", True),
        (r"\*", "x", None),
        ("trailing\\", "trailing\\", None),
        ("#comment", "#comment", None),
        (r"\#file", "#file", True),
        (r"\!file", "!file", True),
        ("blank   ", "blank", True),
        (r"blank\ ", "blank ", True),
        ("dos\r\n", "dos", True),
        ("\ufefffoo", "foo", True),
        ("foo\n!foo", "foo", False),
        ("!foo\nfoo", "foo", True),
        ("*\n!*.c\n", "x.c", False),
        ("", "foo", None),
        ("/", "foo", None),
        ("!", "foo", None),
        ("a\nb", "b", True),
    ],
)
def test_verdict(rules: str, path: str, verdict: bool | None) -> None:
    assert ignored(rules, path) is verdict


def test_rule_with_a_slash_at_its_end_is_for_directories_alone() -> None:
    assert ignored("build/", "x/build", is_directory=True) is True
    assert ignored("build/", "x/build") is None


def test_names_need_not_be_text() -> None:
    assert Patterns(b"\xff*").verdict(b"\xffa\n", b"d/\xffa\n", is_directory=False) is True


def test_file_without_rules_is_false() -> None:
    assert not Patterns(b"# nothing\n\n   \n")
    assert Patterns(b"x")
