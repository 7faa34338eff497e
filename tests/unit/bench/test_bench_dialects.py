"""Bodies and events of the three APIs."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from kvrelay.bench.dialects import DIALECTS, Asking, ChatDialect, CompletionsDialect, NativeDialect
from kvrelay.bench.results.record import AnswerPart
from kvrelay.bench.workloads.dialogue import Passage, PastTurn, UserTurn, token_ids, words

VOCABULARY = range(32, 2048)
ASKING = Asking("tiny", VOCABULARY, ignore_eos=True)
FIRST, SECOND = UserTurn((Passage("a", 20),), 4), UserTurn((Passage("b", 6),), 3)
PAST = [PastTurn(FIRST, "an answer", (7, 8, 9, 10))]


def test_a_next_turn_goes_on_from_the_ids_of_the_answer() -> None:
    body = NativeDialect(ASKING).body(PAST, SECOND)
    expected = [
        *token_ids(FIRST.content, VOCABULARY),  # type: ignore[arg-type]
        *(7, 8, 9, 10),
        *token_ids(SECOND.content, VOCABULARY),  # type: ignore[arg-type]
    ]
    assert body["input_ids"] == expected
    assert body["sampling_params"]["max_new_tokens"] == 3
    assert body["stream"] is True


def test_where_ids_of_answers_are_not_told_as_many_are_made_up() -> None:
    body = CompletionsDialect(ASKING).body([PastTurn(FIRST, "an answer")], SECOND)
    assert len(body["prompt"]) == 20 + 4 + 6
    assert set(body["prompt"]) <= set(VOCABULARY)
    assert (body["max_tokens"], body["model"], body["ignore_eos"]) == (3, "tiny", True)


def test_texts_are_joined_where_the_workload_is_text() -> None:
    past = [PastTurn(UserTurn("Hello. ", 4), "Hi! ")]
    turn = UserTurn("And?", 4)
    assert NativeDialect(ASKING).body(past, turn)["text"] == "Hello. Hi! And?"
    assert CompletionsDialect(ASKING).body(past, turn)["prompt"] == "Hello. Hi! And?"


def test_a_chat_has_its_turns_as_messages() -> None:
    body = ChatDialect(ASKING).body(PAST, SECOND)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == "an answer"
    assert body["messages"][2]["content"] == words(SECOND.content)  # type: ignore[arg-type]
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", ["completions", "chat"])
def test_an_extension_is_left_out_where_it_is_not_wanted(name: str) -> None:
    asking = Asking("gpt", VOCABULARY, ignore_eos=False)
    assert "ignore_eos" not in DIALECTS[name](asking).body([], FIRST)


def test_events_of_generate() -> None:
    read = NativeDialect(ASKING).read
    meta = '"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4'
    running = f'{{"text": "ab", "output_ids": [1, 2], "meta_info": {{{meta}}}}}'
    ended = running.replace("}}", ', "finish_reason": {"type": "length", "length": 2}}}')
    part = AnswerPart(True, 2, num_prompt_tokens=9, num_cached_tokens=4)
    assert read(running.encode()) == part, "text and ids are read at the end alone"
    assert read(ended.encode()) == replace(part, all_text="ab", output_ids=(1, 2))


def test_events_of_completions_and_chats() -> None:
    completions, chat = CompletionsDialect(ASKING).read, ChatDialect(ASKING).read
    assert completions(b'{"choices": [{"text": "hi"}]}') == AnswerPart(True, new_text="hi")
    assert not completions(b'{"choices": [{"text": ""}], "usage": null}').has_content
    assert not chat(b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}').has_content
    assert chat(b'{"choices": [{"delta": {"content": "hi"}}]}').new_text == "hi"
    assert chat(b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}').has_content
    assert chat(b'{"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}').has_content
    usage = b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
    assert chat(usage) == AnswerPart(num_tokens=2, num_prompt_tokens=5)


def test_errors_within_streams_are_named() -> None:
    error = b'{"error": {"message": "lost", "type": "Unavailable", "code": 503}}'
    for dialect in DIALECTS.values():
        part = dialect(ASKING).read(error)
        assert (part.failure, part.message) == ("stream error 503", "lost")
    aborted = b'{"text": "", "meta_info": {"finish_reason": {"type": "abort"}}}'
    assert NativeDialect(ASKING).read(aborted).failure == "aborted"
    with pytest.raises(msgspec.MsgspecError):
        NativeDialect(ASKING).read(b"<html>")
