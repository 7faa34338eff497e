"""Writes docs/compatibility.md: SGLang's native API and OpenAI's, field by field, as this version
treats them.

Nothing in it is claimed: each key is given to the parser with a value that asks for something, and
what comes of it is what the table says. `python -m coordinator.http.documents.compatibility` writes
the file; a test fails while it is not what this module would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute

from coordinator.http.app import ROUTERS
from coordinator.http.documents import seen
from coordinator.http.documents.agents_keys import agents_sections
from coordinator.http.documents.openai_keys import openai_sections
from coordinator.http.documents.tables import table
from coordinator.http.errors import BadRequest
from coordinator.http.live.page import FILE_PATHS
from coordinator.http.missing import OF_SGLANG
from coordinator.http.native.keys import SAMPLING, TOP_LEVEL, Key
from coordinator.http.native.schema import parse_generate

FILE = Path("docs/compatibility.md")
EXAMPLES: dict[str, Any] = {
    "regex": "[a-z]+",
    "json_schema": '{"type": "object"}',
    "ebnf": 'root ::= "yes" | "no"',
    "structural_tag": {"type": "structural_tag", "format": {"type": "any_text"}},
    "text": ["a", "b"],
    "input_ids": [1, 2],
    "sampling_params": {"top_k": 3},
    "stream": True,
    "rid": "mine",
    "request_id": "mine",
    "return_logprob": True,
    "logprob_start_len": -1,
    "top_logprobs_num": 5,
    "token_ids_logprob": [7],
    "return_text_in_logprobs": True,
    "return_prompt_token_ids": True,
    "cache_salt": "tenant",
    "extra_key": "tenant",
    "priority": 1,
    "event_ids": True,
    "resume_token": "that of a stream",
    "session_params": {"id": "s"},
    "session_id": "s",
    "max_new_tokens": 0,
    "min_new_tokens": 1,
    "stop": ["\n"],
    "stop_token_ids": [2],
    "stop_regex": "[.!?]\\s",
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "n": 2,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "no_stop_trim": True,
    "stream_interval": 16,
    "logit_bias": {"7": -1.5},
    "sampling_seed": -1,
    "custom_params": {"a": 1},
    "beam_width": 2,
}
"""A value of each key that asks for something; "x" for all others."""
DIFFERENCES = (
    (
        "stop_regex",
        "Found by an automaton without backtracking, as early as possible. Lookaround, "
        "backreferences, `\\b` and a `$` that does not end the pattern are a 400; one that does is "
        "the end of the text so far, after any character. What matched is trimmed (SGLang leaves "
        "it in the text), and a stream holds back what may become a match. `matched` is the "
        "pattern.",
    ),
    (
        "stream_interval",
        "The first token is sent at once, as it is the one that is waited for.",
    ),
    (
        "sampling_seed",
        "Without one each answer gets a seed of its own. The n answers to a prompt get seed, "
        "seed + 1, …. A seed gives other tokens than SGLang's.",
    ),
    ("n", "May differ from prompt to prompt of a batch. Results come in the order i * n + j."),
    (
        "num_retractions",
        "Counts the attempts after the first one: a node was lost, or had no room.",
    ),
    ("cached_tokens_details", "Everything is `device`: pages are not kept elsewhere."),
    (
        "input_token_logprobs",
        "null only for the first token of a prompt, which has no logprob; SGLang has null for the "
        "first one that is asked for. SGLang's front end calculates with that null, with SGLang "
        "too, when a `select` stands behind very little text: it fails behind one token, and, with "
        "`greedy_token_selection` and `unconditional_likelihood_normalized`, behind two.",
    ),
    (
        "errors",
        'One shape, `{"error": {"message", "type", "code", "param"}}`, for every status; '
        "in a stream an event of that shape with `retryable`, then `[DONE]`.",
    ),
    (
        "disconnects",
        "A client that leaves cancels its request on every node. One that only closes its sending "
        "side gets its whole answer; if that takes longer than a second, interim responses "
        "(100 Continue) or comments of the stream come before.",
    ),
    (
        "/health_generate",
        "200 as soon as any token comes; SGLang waits for a second at least.",
    ),
    ("/flush_cache", "Answers JSON with the pages per node; 400 while requests run."),
    (
        "/concate_and_append_request",
        "Answers 200 and does nothing: a joined text finds what is cached of it by itself.",
    ),
    (
        "session_params",
        "Sessions are in Redis: any coordinator takes the next turn. An unknown session or rid "
        "is a 400 (SGLang: finish_reason abort). A turn that follows one which has not "
        "ended is a 400, with `replace` too (SGLang aborts that one then). "
        "`capacity_of_str_len` is enforced: the most characters of a prompt with its earlier turns "
        "(SGLang keeps it and does not look at it). A session that was not used for "
        "--session-ttl-s is forgotten.",
    ),
    (
        "resume_token",
        "kvrelay's own. meta_info of the first event of a stream of one answer has it. When its "
        "coordinator has died, the same body with the rid (meta_info.id) and the token goes on at "
        "any other coordinator, from the beginning or, with the header Last-Event-ID, behind that "
        "event; the id of an event is its completion_tokens, and `event_ids` asks for `id:` lines. "
        "A 400 that names `rid` says that the first one lives, or that its lease of 3 s has not "
        "ended.",
    ),
    (
        "priority",
        "A higher one goes first among the requests that wait at a coordinator; none that runs is "
        "taken back for it.",
    ),
    (
        "/abort_request",
        "Ends the request of exactly this rid and rid_0, rid_1, … of its batch, at every "
        "coordinator; SGLang ends all whose rid begins with it. `abort_all` asks for the admin "
        "token if one is set.",
    ),
    (
        "/pause_generation",
        "Holds for the whole cluster; asks for the admin token if one is set. `in_place` is done "
        "as `retract`: requests are taken back from the nodes, which keep their pages in the "
        "cache, and go on with the same tokens.",
    ),
    (
        "clean_up_tokenization_spaces",
        "Of tokenizer_config.json: not obeyed, an answer's text is that of its tokens. "
        "transformers 5 obeys it for tokenizers that are not BPE; older ones, and so SGLang with "
        "them, take the spaces before punctuation out of every answer.",
    ),
    (
        "API keys",
        "--api-key may be given several times, and --api-key-file names a file of keys; shown as "
        "`Authorization: Bearer …` or `x-api-key: …`. They guard every path but /health, /ready, "
        "/metrics and the files of the live page: /health_generate too, which computes (SGLang "
        "leaves it open). With an --admin-token, /admin/*, /flush_cache, pauses and `abort_all` "
        "ask for that one, which opens all other paths too; without one, a key opens them.",
    ),
    (
        "CORS",
        "Off; --cors-origin names the origins whose pages may call. SGLang lets any page call.",
    ),
    ("X-Request-Id", "On every response: the client's, or one that is made up."),
)


def observed(key: Key, is_sampling: bool) -> str:
    """Returns "accepted", or "400: …" with the error, for a minimal body with an example value of
    the key. Whether an accepted key has an effect is not seen here."""
    value = EXAMPLES.get(key.name, "x")
    given = {"sampling_params": {key.name: value}} if is_sampling else {key.name: value}
    prompt = {} if key.name in ("text", "input_ids") else {"text": "a"}
    try:
        parse_generate(prompt | given)
    except BadRequest as error:
        return f"400: {error}"
    return "accepted"


def document() -> str:
    """Returns the whole file."""
    return "\n".join(
        [
            "# Compatibility with SGLang's native API",
            "",
            "This file is written by `python -m coordinator.http.documents.compatibility`. It "
            "names what SGLang 0.5.6 and later have, and what kvrelay does with it. The last "
            "column is what came of a request with a value that asks for something.",
            "",
            'Values that ask for nothing (null, false, "", {}, lists of such) are always '
            "accepted; null stands for the default of every key.",
            "",
            "What SGLang's flags do is in [sglang-flags.md](sglang-flags.md).",
            "",
            "## POST /generate",
            "",
            *_key_table(TOP_LEVEL, is_sampling=False),
            "",
            "Any other key at the top is ignored.",
            "",
            "## sampling_params",
            "",
            *_key_table(SAMPLING, is_sampling=True),
            "",
            "Any other key here is a 400 that names it.",
            "",
            "## What differs",
            "",
            *table(("what", "how it differs from SGLang"), [list(row) for row in DIFFERENCES]),
            "",
            "## Endpoints",
            "",
            *table(("endpoint", "what it does"), _endpoints()),
            "",
            f"SGLang has these, and this version answers them with 501: {_paths(OF_SGLANG)}",
            "",
            "Everything else is a 404; a wrong method is a 405 with `Allow`.",
            "",
            "## Seen with SGLang's front end",
            "",
            f"The package `sglang` {seen.version()}, unchanged, against a cluster of two prefill "
            "and two decode nodes with the embedded model: "
            f"{seen.summary('front_end')}. `make verify` looks again.",
            "",
            *table(("primitive", "cases", "seen"), seen.rows("front_end")),
            "",
            "## Seen with the demands of SGLang's own checks",
            "",
            "What SGLang's black-box checks demand of a server without a large model's knowledge: "
            f"{seen.summary('checks')}.",
            "",
            *table(("demand", "cases", "seen"), seen.rows("checks")),
            "",
            *openai_sections(),
            *agents_sections(),
        ]
    )


def _key_table(keys: tuple[Key, ...], is_sampling: bool) -> list[str]:
    rows = [[f"`{key.name}`", key.treatment, key.note, observed(key, is_sampling)] for key in keys]
    return table(("key", "treatment", "note", "seen"), rows)


def _endpoints() -> list[list[str]]:
    rows: dict[str, tuple[list[str], str]] = {
        "/generate": (["POST", "PUT"], "Generates answers."),
        "/v1/chat/completions": (["POST"], "Answers chats."),
        "/v1/completions": (["POST"], "Goes on with texts."),
        "/v1/messages": (["POST"], "Answers chats in Anthropic's form."),
        "/v1/messages/count_tokens": (["POST"], "Counts the tokens of their prompts."),
        "/v1/responses": (["POST"], "Answers agents in the form of OpenAI's responses."),
    }
    for module in ROUTERS:
        for route in module.router.routes:
            if isinstance(route, APIRoute) and route.path not in (*OF_SGLANG, *FILE_PATHS):
                methods, _ = rows.setdefault(route.path_format, ([], _first_sentence(route)))
                methods += sorted((route.methods or set()) - set(methods))
    return [[f"{' '.join(sorted(methods))} {path}", text] for path, (methods, text) in rows.items()]


def _first_sentence(route: APIRoute) -> str:
    text = " ".join((route.endpoint.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _paths(paths: tuple[str, ...]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
