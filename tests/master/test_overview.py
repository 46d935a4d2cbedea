"""The farm at a glance: its numbers, why something waits, the lanes, and the stream of what changes."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
from hypothesis import given
from hypothesis import strategies as st

from biruda.master import feed, timeline
from biruda.master.runs import Run
from tests.fakes import environment
from tests.master.test_api import TOKEN, Client, served

ADMIN = {"Authorization": f"Bearer {TOKEN}"}


async def settled(client: Client) -> Any:
    """The farm as it is now."""
    await asyncio.sleep(feed.PACE_S)  # a look is that old at most
    return await client.get("/api/v1/farm")


async def test_its_numbers_are_true(tmp_path: Path) -> None:
    async with served(
        tmp_path, environments=(environment("host"), environment("away", usable=False, problem="no root"))
    ) as client:
        now_s = time.time()
        await client.ended(started_s=now_s - 1, finished_s=now_s)
        running = [await client.begun(name="long") for _ in range(2)]
        waiting = await client.submit(name="next")
        hopeless = await client.submit(name="lost", requirements={"arch": "riscv64"}, queue=True)
        farm = await settled(client)
        head = farm["head"]
        assert (head["running"], head["waiting"], head["day"]) == (2, 2, {"passed": 1})
        assert (head["slots"], head["used"], head["hosts"], head["connected"]) == (2, 2, 1, 1)
        assert {item["job"] for item in farm["now"]} == set(running)
        waits = {item["first"]: item["sentence"] for item in farm["waits"]}
        assert waits == {waiting: "all 2 slots on h1 are taken", hopeless: "no environment fits"}
        texts = [item["text"] for item in farm["troubles"]]
        assert texts == ["away on h1 cannot be used: no root", "1 job waits for what nobody has: arch=riscv64"]
        (cell,) = farm["matrix"]
        assert (cell["running"], cell["waiting"], cell["idle"], cell["environments"], cell["usable"]) == (2, 1, 0, 2, 1)
        assert [item["job"] for item in farm["newest"]] == [1]
        assert farm["hour"][-1]["passed"] + farm["hour"][-2]["passed"] <= 1


async def test_who_watches_is_told_of_changes_and_of_nothing_else(tmp_path: Path) -> None:
    async with served(tmp_path) as client, aiohttp.ClientSession(headers=ADMIN) as session:
        async with (
            session.ws_connect(client.tcp + "/api/v1/events?watch=farm") as farm,
            session.ws_connect(client.tcp + "/api/v1/events?watch=head") as head,
        ):
            first = json.loads((await farm.receive()).data)
            assert set(first["sections"]) >= {"head", "hosts", "now", "newest", "matrix", "hour", "timeline"}
            assert set(json.loads((await head.receive()).data)["sections"]) == {"head"}
            job = await client.begun(name="seen")
            async with asyncio.timeout(10):
                while True:
                    message = json.loads((await farm.receive()).data)
                    now = message.get("sections", {}).get("now")
                    if now:
                        break
            assert [item["job"] for item in now] == [job]
            assert message["id"] > first["id"]
            assert "newest" not in message["sections"]
            async with asyncio.timeout(10):
                while True:
                    sections = json.loads((await head.receive()).data)["sections"]
                    assert set(sections) == {"head"}
                    if sections["head"]["running"] == 1:
                        break
        answer = await client.ask("GET", "/api/v1/events?watch=everything")
        assert answer.problem["detail"] == "watch = 'everything': there are farm, head"


def run_of(number: int, host: str, start: float, length: float, outcome: str) -> Run:
    return Run(number, 1, "n", "", host, "e", "amd64", "x", outcome, start, start, start + length, start + length)


RUNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 3000), st.integers(0, 400), st.sampled_from(["passed", "failed"])),
    max_size=60,
)


@given(RUNS)
def test_no_two_bars_of_a_lane_overlap_and_every_run_is_in_one(items: list[tuple[str, int, int, str]]) -> None:
    runs = [run_of(number, *item) for number, item in enumerate(items)]
    lanes = timeline.lanes(runs, ["a", "b"])
    for lane in lanes:
        for one, other in zip(lane["bars"], lane["bars"][1:], strict=False):
            assert one["end"] <= other["start"]
    shown = {host: len([lane for lane in lanes if lane["host"] == host]) for host in "ab"}
    if all(count < timeline.MOST_LANES // 2 for count in shown.values()):
        assert sum(bar["runs"] for lane in lanes for bar in lane["bars"]) == len(runs)


def test_a_crowd_of_lanes_and_bars_is_bounded() -> None:
    runs = [run_of(number, f"h{number % 30}", float(number % 3000), 300.0, "passed") for number in range(5000)]
    lanes = timeline.lanes(runs, [f"h{number}" for number in range(30)])
    assert len(lanes) <= timeline.MOST_LANES
    assert sum(len(lane["bars"]) for lane in lanes) <= timeline.MOST_BARS + len(lanes)
