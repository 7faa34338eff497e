"""The steps of the demo. Each shows something on a running cluster, and checks it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import httpx
from rich.console import Console

from infra.cluster import LocalCluster
from infra.demo.reuse import ReusedPrompt, median_s, num_by_owners, problem_with, shared_in_pages
from infra.demo.texts import ANSWERS, CAT, DAYS, NOTES, QUESTIONS, STORY, chat
from kvrelay.answers import Generated
from kvrelay.calls import tokenize
from kvrelay.client import Client
from protocol.errors import UserError

NEWS_TIMEOUT_S = 5.0
"""How long what an answer changes may take to show in the coordinator's statistics."""
KILL_AFTER_TOKENS = 12
STORY_TOKENS = 200
REGEX = r"The code is [0-9]{4}\."


class StepFailed(UserError):
    """A step of the demo did not give what it promises."""


class Demo:
    """The demo on a cluster that runs."""

    def __init__(
        self, cluster: LocalCluster, client: Client, console: Console, api_key: str = ""
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._console = console
        self._api_key = api_key

    def show(self, checks_times: bool) -> None:
        """Shows every step. Raises StepFailed at the first that does not hold."""
        self._console.rule("1. a streamed answer")
        story = self.story()
        self._console.rule("2. prompts that begin alike")
        self.reuse(checks_times)
        self._console.rule("3. an answer that obeys a regular expression")
        self.regex()
        self._console.rule("4. OpenAI's API")
        self.openai()
        self._console.rule("5. a decode node is killed in the middle of an answer")
        self.killed_node(story)
        self._console.print(
            f"\n[green]Every step held.[/green] Live page: {self._cluster.url}/admin/"
        )

    def story(self) -> Generated:
        """Streams a story. Raises StepFailed if it has no end."""
        self._say(STORY)
        story = self._stream(self._updates(STORY, STORY_TOKENS))
        _check(len(story.text) > 40, "the story is empty")
        meta = story.meta_info
        _check(meta.prefill_node is not None, "the prompt was not computed by a prefill node")
        _check(meta.transferred_pages > 0, "no page moved from the prefill to the decode node")
        self._note(
            f"{meta.prefill_node} computed the prompt, its {meta.transferred_pages} pages of keys "
            f"and values went to {meta.decode_node}, which answered"
        )
        return story

    def reuse(self, checks_times: bool) -> None:
        """Asks two questions on each of several pages of notes. Raises StepFailed if the second one
        computes what the first one has left, or is not faster."""
        before = self._computed_tokens()
        pairs = [self._pair(NOTES.format(day=day)) for day in DAYS]
        cold_tokens = sum(pair[0] for pair in pairs)
        reused = [pair[1] for pair in pairs]
        computed = self._computed_tokens() - before
        problem = problem_with(reused, computed, cold_tokens, checks_times)
        num_owners = num_by_owners(reused)
        warm = reused[-1]
        self._note(
            f"of {warm.prompt_tokens} tokens {warm.cached_tokens} were there; the node that has "
            f"them computed the rest in {num_owners} of {len(reused)} cases\n"
            f"first token after {median_s(reused, 'cold_s') * 1e3:.1f} ms cold, "
            f"{median_s(reused, 'warm_s') * 1e3:.1f} ms warm (medians of {len(reused)} pairs)"
        )
        _check(not problem, problem)

    def regex(self) -> None:
        """Asks for an answer in a given form. Raises StepFailed if it has another one."""
        text = f"{NOTES.format(day=DAYS[0])}{QUESTIONS[0]}"
        answer = self._client.generate(chat(text), temperature=0.0, regex=REGEX)
        self._say(f"… {QUESTIONS[0]}   (regex {REGEX})")
        self._console.print(answer.text)
        _check(re.fullmatch(REGEX, answer.text) is not None, f"{answer.text!r} is not {REGEX}")
        _check(ANSWERS[0] in answer.text, f"expected {ANSWERS[0]} in {answer.text!r}")

    def openai(self) -> None:
        """Asks as an application of OpenAI's does, with its own package where that is installed.
        Raises StepFailed if the answer is wrong."""
        url, key = f"{self._cluster.url}/v1", self._api_key or "none"
        text, how = _ask_openai(url, key, CAT)
        self._say(CAT)
        self._console.print(text)
        self._note(f"{how}, base_url={url!r}")
        _check("Zorin" in text, f"expected the name Zorin in {text!r}")

    def killed_node(self, story: Generated) -> None:
        """Kills the node that answers, with SIGKILL. Raises StepFailed unless the stream goes on
        with the same tokens as those of `story`."""
        self._say(STORY)
        killed: list[str] = []

        def updates() -> Iterator[Generated]:
            for update in self._updates(STORY, STORY_TOKENS):
                if not killed and len(update.output_ids) >= KILL_AFTER_TOKENS:
                    killed.append(self._kill(update.meta_info.decode_node))
                yield update

        told = self._stream(updates(), mark_after=KILL_AFTER_TOKENS)
        _check(bool(killed), "the story was too short to kill a node within it")
        _check(told.output_ids == story.output_ids, "the story went on with other tokens")
        _check(told.meta_info.attempts > 1, "the node had answered before it was killed")
        self._note(
            f"{killed[0]} was killed at ▮; {told.meta_info.decode_node} went on, with the same "
            f"{len(told.output_ids)} tokens"
        )

    def _kill(self, name: str | None) -> str:
        child = self._cluster.children.get(name or "")
        if name is None or child is None:
            raise StepFailed(f"the demo failed: {name!r} is no node that it has started")
        child.process.send_signal(signal.SIGKILL)
        return name

    def _pair(self, notes: str) -> tuple[int, ReusedPrompt]:
        """Asks both questions on the same notes. Returns the length of the first prompt, and what
        became of the second one."""
        first, second = (chat(notes + question) for question in QUESTIONS)
        ids = [self._client.call(tokenize(prompt=prompt)) for prompt in (first, second)]
        shared_tokens = shared_in_pages(ids[0], ids[1], self._page_size)
        cold = self._answer(first, ANSWERS[0]).meta_info
        owner = cold.prefill_node or ""
        self._await_owner(owner, second, shared_tokens)
        warm = self._answer(second, ANSWERS[1]).meta_info
        return cold.prompt_tokens, ReusedPrompt(
            shared_tokens=shared_tokens,
            prompt_tokens=warm.prompt_tokens,
            cached_tokens=warm.cached_tokens,
            cold_s=cold.ttft or 0.0,
            warm_s=warm.ttft or 0.0,
            owner=owner,
            computed_by=warm.prefill_node or "",
        )

    def _answer(self, prompt: str, expected: str) -> Generated:
        answer = self._client.generate(prompt, temperature=0.0, max_new_tokens=32)
        _check(expected in answer.text, f"expected {expected} in {answer.text!r}")
        return answer

    def _updates(self, text: str, max_new_tokens: int) -> Iterator[Generated]:
        return self._client.stream(chat(text), temperature=0.0, max_new_tokens=max_new_tokens)

    def _stream(self, updates: Iterator[Generated], mark_after: int = 0) -> Generated:
        """Shows an answer as it grows, with a mark behind that many tokens, and returns it. Raises
        StepFailed if it has no end."""
        update, shown = Generated(text=""), 0
        for update in updates:
            self._console.out(update.text[shown:], end="", highlight=False)
            shown = len(update.text)
            if mark_after and len(update.output_ids) >= mark_after:
                mark_after = 0
                self._console.print("[red]▮[/red]", end="")
        self._console.print()
        _check(update.meta_info.finish_reason is not None, "the answer did not end")
        return update

    def _say(self, text: str) -> None:
        self._console.print(f"> {text}", style="cyan", markup=False)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    @property
    def _page_size(self) -> int:
        return int(self._client.nodes()[0]["layout"]["page_size"])

    def _computed_tokens(self) -> int:
        """Returns how many prompt tokens all nodes have computed, once they rest."""
        since = time.monotonic()
        _await(lambda: _all_rest(self._client.nodes(), since), "the end of all work")
        counters = self._client.cache_stats()["cluster"]["node_counters"]
        return int(counters["computed_tokens"])

    def _await_owner(self, owner: str, prompt: str, shared_tokens: int) -> None:
        """Waits until the router knows that a node has the beginning of a prompt, and that it is
        idle. Raises StepFailed."""

        def is_known() -> bool:
            candidates = self._client.explain(prompt)["candidates"]["prefill"]
            return any(
                one["node"] == owner
                and one["owned_pages"] * self._page_size >= shared_tokens
                and one["queue_ms"] == 0
                for one in candidates
            )

        _await(is_known, "page ownership")


def _all_rest(nodes: list[dict[str, Any]], since: float) -> bool:
    """Returns True if every node has said, after the time `since`, that it holds no page."""
    elapsed_s = time.monotonic() - since
    return all(
        node["last_heartbeat_s_ago"] < elapsed_s and node["load"]["held_pages"] == 0
        for node in nodes
    )


def _ask_openai(url: str, key: str, text: str) -> tuple[str, str]:
    """Returns the answer to a chat of one message, and what was used to ask."""
    messages = [{"role": "user", "content": text}]
    try:
        openai: Any = import_module("openai")
    except ImportError:
        body = {"model": "default", "messages": messages, "temperature": 0}
        headers = {"Authorization": f"Bearer {key}"}
        reply = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30.0)
        reply.raise_for_status()
        return reply.json()["choices"][0]["message"]["content"], "POST /v1/chat/completions"
    with openai.OpenAI(base_url=url, api_key=key) as client:
        answer = client.chat.completions.create(model="default", messages=messages, temperature=0)
    return answer.choices[0].message.content or "", "asked with the package openai"


def _await(condition: Callable[[], bool], what: str) -> None:
    """Polls until `condition` holds. Raises StepFailed, which names `what`, if it never does."""
    deadline = time.monotonic() + NEWS_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise StepFailed(f"the demo failed: {what} did not come within {NEWS_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _check(holds: bool, sentence: str) -> None:
    """Raises StepFailed with `sentence` unless the condition holds."""
    if not holds:
        raise StepFailed(f"the demo failed: {sentence}")
