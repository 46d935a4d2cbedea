"""What is shown of others' text, on the server and in the browser, and how a job's end is put into words."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from biruda.master.ending import ending
from biruda.webui.marks import shown
from tests.web.site import Site

MARKS = {
    "plain grün": "plain grün",
    "a\tb": "a\tb",
    "\x1b[31mred\x1b[0m": "red",
    "\x1b[2Jx": "^[[2Jx",
    "\x00\x07\x7f\r": "^@^G^?^M",
    "evil\u202egpj": "evil[U+202E]gpj",
    "zero\u200bwidth\ufeff": "zero[U+200B]width[U+FEFF]",
    "\x9b31m": "[U+009B]31m",
    "tag\U000e0041": "tag[U+E0041]",
}

NODES = [
    ("\x1b[1;31mbold red\x1b[22;39m plain", [["bold red", "a-bold a-f1"], [" plain", None]]),
    ("\x1b[38;5;208mx\x1b[mz", [["x", "rgb(255, 135, 0)"], ["z", None]]),
    ("\x1b[48;2;1;2;3my", [["y", "on rgb(1, 2, 3)"]]),
    ("\x1b[7minverse", [["inverse", "a-fground a-btext"]]),
    ("\x1b[92;104mz", [["z", "a-f10 a-b12"]]),
    ("a\x1b[Kb", [["a", None], ["^[", "mark"], ["b", None]]),
    ("\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x07", [["^[", "mark"], ["link", None], ["^[", "mark"]]),
    ("\x1b[", [["^[", "mark"], ["[", None]]),
    ("x\u202ey", [["x", None], ["[U+202E]", "mark"], ["y", None]]),
    ("end\r", [["end", None]]),
    ("50 %\r100 %", [["50 %", None], ["^M", "mark"], ["100 %", None]]),
    ("<b>&amp;</b>", [["<b>&amp;</b>", None]]),
    ("\x1b[999999999999m\x1b[38;5;999mq", [["q", "rgb(238, 238, 238)"]]),
]


@pytest.fixture(scope="module")
def page(lived: Site) -> Iterator[Page]:
    with lived.open("/nothing") as made:
        made.evaluate(
            """async () => {
                const own = document.querySelector("script[src$='/page.js']").src;
                window.text = await import(own.replace("page.js", "text.js"));
            }"""
        )
        yield made


@pytest.mark.parametrize(("text", "expected"), MARKS.items())
def test_server_and_browser_show_the_same_marks(page: Page, text: str, expected: str) -> None:
    assert shown(text) == expected
    assert page.evaluate("(text) => window.text.shown(text)", text) == expected


@pytest.mark.parametrize(("text", "expected"), NODES, ids=[repr(text) for text, _ in NODES])
def test_colours_are_kept_and_nothing_else_is_obeyed(page: Page, text: str, expected: list[Any]) -> None:
    found = page.evaluate(
        """(text) => window.text.nodes(text).map((node) => typeof node === "string" ? [node, null]
            : [node.textContent, node.className || node.style.color || `on ${node.style.backgroundColor}`])""",
        text,
    )
    assert found == expected


def view(outcome: str, *steps: tuple[str, int | None, int | None, str]) -> dict[str, Any]:
    listed = [
        {"name": name, "exit_status": status, "signal": number, "note": note} for name, status, number, note in steps
    ]
    return {"outcome": outcome, "steps": listed, "reason": ""}


@pytest.mark.parametrize(
    ("job", "step", "how", "fault"),
    [
        (view("failed", ("build", 0, None, ""), ("check", 2, None, "")), 1, "exit 2", "the tests' fault"),
        (view("failed", ("build", None, 11, "")), 0, "killed by SIGSEGV", "the sources' fault"),
        (view("timeout", ("build", None, 9, "time limit of 5 s")), 0, "time limit of 5 s", "a limit was over"),
        (view("infra", ("build", 0, None, "")), None, "", "the farm's fault"),
        (view("environment"), None, "", "an administrator"),
        (view("cancelled", ("build", None, 15, "")), None, "", "somebody asked"),
        (view("passed", ("build", 0, None, "")), None, "", ""),
    ],
)
def test_an_end_names_the_step_and_whose_fault_it_was(
    job: dict[str, Any], step: int | None, how: str, fault: str
) -> None:
    told = ending(job)
    assert told is not None
    assert (told["step"], told["how"]) == (step, how)
    assert told["fault"].startswith(fault)
    assert ending({**job, "outcome": None}) is None
