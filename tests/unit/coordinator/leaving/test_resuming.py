"""A stream whose coordinator has died goes on at another one, token for token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.channel import Channel
from protocol.hashing import token_bytes, tokens_from_bytes
from protocol.messages import Generate, TakenOver, TakeOver
from tests.support.coordinator.http_servers import Connection, Served, run_served, served
from tests.support.coordinator.services import D0, received

BODY: dict[str, Any] = {
    "text": "Once",
    "stream": True,
    "rid": "mine",
    "sampling_params": {"max_new_tokens": 6},
}
TOKENS = [400, 401, 402, 403, 404, 405]


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


async def first_token_of(here: Served, body: dict[str, Any] = BODY) -> tuple[str, Generate]:
    """Lets a stream begin at a coordinator which dies then. Returns its resume token, and what the
    node was asked."""
    client = await here.connect()
    client.send("POST", "/generate", body)
    generate = await here.generate()
    here.tokens(generate, 0, TOKENS[:1])
    here.tokens(generate, 1, TOKENS[1:], "length")
    first, second, *_ = (await client.reply()).events
    assert "resume_token" not in json.loads(second)["meta_info"], "the first event alone has it"
    return json.loads(first)["meta_info"]["resume_token"], generate


async def resume(
    here: Served, token: str, kept: list[int] | None, finish: str = "", **headers: str
) -> Connection:
    """Comes back with a resume token; the node has kept these tokens."""
    client = await here.connect()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    client.send("POST", "/generate", BODY | {"resume_token": token}, names)
    (question,) = await received(here.decode, 1)
    assert isinstance(question, TakeOver)
    tokens = None if kept is None else token_bytes(kept)
    here.service.handle(TakenOver(D0, question.question_id, False, tokens, finish, 2))
    return client


def shown(events: list[str]) -> list[list[int]]:
    """The ids of each event but [DONE]."""
    assert events[-1] == "[DONE]"
    return [json.loads(event)["output_ids"] for event in events[:-1]]


def test_what_was_answered_is_taken_over_and_goes_on(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as first, served(decode) as second:
            token, before = await first_token_of(first)
            client = await resume(second, token, TOKENS[:3])
            again = await second.generate()
            assert tokens_from_bytes(again.tokens) == [
                *tokens_from_bytes(before.tokens),
                *TOKENS[:3],
            ]
            assert again.max_new_tokens == 3 and again.sampling == before.sampling
            assert again.resume_key not in ("", before.resume_key)
            second.tokens(again, 0, TOKENS[3:], "length")
            events = (await client.reply()).events
            assert shown(events) == [TOKENS[:3], TOKENS]
            meta = json.loads(events[-2])["meta_info"]
            assert meta["id"] == "mine" and meta["cached_tokens"] == 2
            assert json.loads(events[0])["meta_info"]["resume_token"] != token

    run_served(test)


@pytest.mark.parametrize(
    ("num_seen", "only_new", "kept"),
    [
        (1, True, TOKENS[:4]),
        (4, True, TOKENS[:4]),
        (2, False, TOKENS[:4]),
        (2, True, None),
        (4, False, None),
    ],
)
def test_from_the_last_event_on(
    decode: Channel, num_seen: int, only_new: bool, kept: list[int] | None
) -> None:
    """Also if no node has kept anything, and the answer is computed again."""

    async def test() -> None:
        async with served(decode) as first, served(decode, stream_output=only_new) as second:
            whole = second.service.tokenizer.decode(TOKENS, skip_special_tokens=True)
            seen = second.service.tokenizer.decode(TOKENS[:num_seen], skip_special_tokens=True)
            token, before = await first_token_of(first)
            client = await resume(second, token, kept, Last_Event_ID=str(num_seen))
            again = await second.generate()
            assert again.sampling.seed == before.sampling.seed
            for number, one in enumerate(TOKENS[len(kept or []) :]):
                is_last = len(kept or []) + number + 1 == len(TOKENS)
                second.tokens(again, number, [one], "length" if is_last else "")
            events = (await client.reply()).events
            results = [json.loads(event) for event in events[:-1]]
            counts = [result["meta_info"]["completion_tokens"] for result in results]
            assert counts == sorted(set(counts)) and counts[0] > num_seen and counts[-1] == 6
            if only_new:
                assert [i for r in results for i in r["output_ids"]] == TOKENS[num_seen:]
                assert seen + "".join(r["text"] for r in results) == whole
            else:
                assert results[-1]["output_ids"] == TOKENS and results[-1]["text"] == whole

    run_served(test)


def test_an_answer_that_has_ended_needs_no_node(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as first, served(decode) as second:
            token, _ = await first_token_of(first)
            client = await resume(second, token, TOKENS, "length", Last_Event_ID="6")
            (last,) = shown((await client.reply()).events)
            assert last == TOKENS

    run_served(test)


def test_while_the_first_one_lives_it_is_refused(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as first, served(decode) as second:
            token, _ = await first_token_of(first)
            client = await second.connect()
            client.send("POST", "/generate", BODY | {"resume_token": token})
            (question,) = await received(decode, 1)
            assert isinstance(question, TakeOver)
            second.service.handle(TakenOver(D0, question.question_id, True))
            reply = await client.reply()
            assert reply.status == 400 and reply.error["param"] == "rid"
            assert "lives" in reply.error["message"]

    run_served(test)


OF_NO_OTHER_REQUEST: list[tuple[dict[str, Any], str]] = [
    ({"text": "Twice"}, "resume_token"),
    ({"rid": "another"}, "resume_token"),
    ({"cache_salt": "another"}, "resume_token"),
    ({"sampling_params": {"max_new_tokens": 6, "top_p": 0.5}}, "resume_token"),
    ({"resume_token": "x"}, "resume_token"),
    ({"resume_token": "é"}, "resume_token"),
    ({"resume_token": "A" * 10_000}, "resume_token"),
    ({"rid": None}, "rid"),
    ({"stream": False}, "resume_token"),
    ({"text": ["Once"]}, "resume_token"),
    ({"sampling_params": {"n": 2}}, "resume_token"),
    ({"session_params": {"id": "s"}}, "resume_token"),
]


def test_a_token_is_good_for_its_own_request_alone(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as first, served(decode) as second:
            token, _ = await first_token_of(first)
            for change, param in OF_NO_OTHER_REQUEST:
                body = BODY | {"resume_token": token} | change
                reply = await second.ask("POST", "/generate", body)
                assert reply.status == 400 and reply.error["param"] == param, change
            body = BODY | {"resume_token": token}
            reply = await second.ask("POST", "/generate", body, Last_Event_ID="-1")
            assert reply.status == 400 and "Last-Event-ID" in reply.error["message"]

    run_served(test)


def test_events_have_ids_for_who_asks_for_them(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for with_ids in (False, True):
                client = await here.connect()
                client.send("POST", "/generate", BODY | {"event_ids": with_ids})
                generate = await here.generate()
                here.tokens(generate, 0, TOKENS[:2])
                here.tokens(generate, 2, TOKENS[2:], "length")
                body = (await client.reply()).body
                assert (b"id: 2\ndata: {" in body) == with_ids
                assert (b"id: 6\ndata: {" in body) == with_ids

    run_served(test)


def test_streams_of_several_answers_have_no_token(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for change, num in (({"text": ["Once"]}, 1), ({"sampling_params": {"n": 2}}, 2)):
                client = await here.connect()
                client.send("POST", "/generate", BODY | change)
                for message in await received(decode, num):
                    assert isinstance(message, Generate) and not message.resume_key
                    here.tokens(message, 0, TOKENS[:1], "length")
                assert b"resume_token" not in (await client.reply()).body

    run_served(test)
