"""Tickets: each opens its path for its time, and nothing else."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.llm import LLM
from abyssal.serve.ticket import LIFE_S, Tickets
from tests.serve.client import serving
from tests.serve.wire import KEY

PATHS = st.text(max_size=20)


@given(path=PATHS, other=PATHS)
def test_a_ticket_opens_its_own_path_on_its_own_server(path, other):
    tickets = Tickets()
    ticket = tickets.give(path)
    assert tickets.opens(path, ticket)
    assert tickets.opens(other, ticket) == (path == other)
    assert not Tickets().opens(path, ticket)


@given(
    forged=st.text(max_size=80)
    | st.from_regex(r"[0-9]{1,20}\.[0-9a-f]{64}", fullmatch=True)
    | st.integers(0, 10**13).map(str)
)
def test_what_was_not_given_opens_nothing(forged):
    assert not Tickets().opens("/model/report", forged)


def test_a_ticket_grows_old(monkeypatch):
    tickets = Tickets()
    ticket = tickets.give("/a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LIFE_S + 2)
    assert not tickets.opens("/a", ticket)


@pytest.mark.anyio
async def test_the_report_opens_with_a_key_or_its_ticket_and_nothing_else_does(llm: LLM):
    async with serving(llm, api_keys=(KEY,)) as client:
        http, key = client.http, {"Authorization": f"Bearer {KEY}"}
        assert (await http.get("/model/report/ticket")).status_code == 401
        given = (await http.get("/model/report/ticket", headers=key)).json()
        ticket = {"ticket": given["ticket"]}
        for tried, status in (({}, 401), ({"ticket": "1.ab"}, 401), (ticket, 404)):  # no folder
            assert (await http.get("/model/report", params=tried)).status_code == status
        assert (await http.get("/model", params=ticket)).status_code == 401
        assert (await http.get("/history/chats", params=ticket)).status_code == 401
