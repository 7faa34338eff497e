"""From checked prompts to answers that grow: tokenizes, compiles, submits."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.http.errors import BadRequest
from coordinator.http.native.intake import check_ids, compile_grammar, encode, make_request
from coordinator.http.native.schema import GeneratePrompt
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival


async def submit_all(
    service: Service,
    prompts: Sequence[GeneratePrompt],
    arrival: Arrival,
    with_special_tokens: bool = True,
) -> list[Mailbox]:
    """Starts the n answers to each prompt, in the order i * n + j; if one is refused, none of them.

    `with_special_tokens`: texts get the special tokens that stand around a plain text. Raises
    BadRequest and RequestRefused.
    """
    require_so_many_answers(service, prompts, "n")
    require_turn(service, prompts, arrival)
    arrival = arrival.parsed(service.now())
    tokens = [await _tokens(service, prompt, with_special_tokens) for prompt in prompts]
    tokenizer = service.tokenizer
    grammars = [await compile_grammar(one, tokenizer, service.grammars) for one in prompts]
    service.core.require_ready()  # without nodes no length is short enough
    longest = service.max_total_tokens
    mailboxes: list[Mailbox] = []
    try:
        for prompt, ids, grammar in zip(prompts, tokens, grammars, strict=True):
            for choice in range(prompt.sampling.n):
                request = make_request(prompt, ids, choice, tokenizer, longest, arrival, grammar)
                mailboxes.append(service.submit(request, is_next=bool(mailboxes)))
    except BaseException:
        cancel_unfinished(service, mailboxes)
        raise
    return mailboxes


def require_so_many_answers(service: Service, prompts: Sequence[GeneratePrompt], key: str) -> None:
    """Raises BadRequest, which names `key`, if all answers together are more than the cluster takes
    at once: they could never begin."""
    num_answers = sum(prompt.sampling.n for prompt in prompts)
    max_unfinished = service.core.max_unfinished
    if num_answers > max_unfinished > 0:
        raise BadRequest(
            f"the body asks for {num_answers} answers; this cluster takes at most "
            f"{max_unfinished} at once: send fewer prompts, or lower n",
            key,
        )


def require_turn(service: Service, prompts: Sequence[GeneratePrompt], arrival: Arrival) -> None:
    """Raises Unavailable or TooBusy if it is clear before anything is tokenized that the body would
    be refused: under a load of many times the capacity, most bodies are."""
    first = prompts[0]
    tenant = arrival.tenant(first.cache_salt)
    service.core.require_turn(tenant, first.priority, service.now())


def cancel_unfinished(service: Service, mailboxes: Sequence[Mailbox]) -> None:
    """Ends the answers that have not ended, on every node."""
    for mailbox in mailboxes:
        if not mailbox.answer.is_done:
            service.cancel(mailbox.answer.request_id)


async def _tokens(service: Service, prompt: GeneratePrompt, with_special: bool) -> list[int]:
    if prompt.input_ids is None:
        tokens = await encode(prompt.text or "", service.tokenizer, with_special)
    else:
        tokens = prompt.input_ids
        check_ids(tokens, "input_ids", service.tokenizer)
    if not tokens:
        raise BadRequest("the prompt is empty", "input_ids" if prompt.text is None else "text")
    return tokens
