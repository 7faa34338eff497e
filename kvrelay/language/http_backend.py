"""`HttpBackend`: a cluster, or any server of SGLang's /generate, answers a program's questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrelay import calls
from kvrelay.answers import Generated
from kvrelay.client import Client
from kvrelay.errors import ClientError
from kvrelay.language.backend import Decision, likeliest
from kvrelay.language.expressions import LanguageError
from kvrelay.language.role_markers import RoleMarkers, named_markers, rendered_markers
from kvrelay.language.scoring import first_scored, score_of

SERVER_TEMPLATE = "server"
NOTHING_WRITTEN: Mapping[str, Any] = {"max_new_tokens": 0, "temperature": 0}


class HttpBackend:
    """Asks a server through a `Client`, which the caller closes.

    Roles are written as the server's own chat template renders them, which only kvrelay tells; for
    another server a template is named.
    """

    def __init__(
        self,
        client: Client,
        chat_template: str = SERVER_TEMPLATE,
        sampling: Mapping[str, Any] | None = None,
        cache_salt: str = "",
    ) -> None:
        """`sampling` has the parameters of every generation that does not give its own. Texts share
        pages only with those of the same `cache_salt`. Raises LanguageError for a template that is
        unknown."""
        self._client = client
        self._sampling = dict(sampling or {})
        self._common = {"cache_salt": cache_salt} if cache_salt else {}
        is_named = chat_template != SERVER_TEMPLATE
        self._markers = named_markers(chat_template) if is_named else None

    def markers(self) -> RoleMarkers:
        """Returns the texts around what roles say; asks the server the first time."""
        if self._markers is None:
            self._markers = self._rendered_markers()
        return self._markers

    def warm(self, text: str) -> None:
        """Lets the server compute a text without an answer."""
        self._client.generate(text, **NOTHING_WRITTEN, **self._common)

    def generate(self, prompt: str, params: Mapping[str, Any]) -> Generated:
        """Returns the answer to a prompt."""
        return self._client.generate(prompt, **self._params(params))

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[Generated]:
        """Yields the answer to a prompt as it grows."""
        return self._client.stream(prompt, **self._params(params))

    def select(self, prefix: str, choices: Sequence[str]) -> Decision:
        """Returns the likeliest of `choices`. The prefix is computed once, and the choices share
        its pages."""
        computed = self._client.generate(prefix, **NOTHING_WRITTEN, **self._common)
        num_prefix_tokens = computed.meta_info.prompt_tokens
        scored = self._client.generate_list(
            [prefix + choice for choice in choices],
            return_logprob=True,
            return_text_in_logprobs=True,
            logprob_start_len=first_scored(num_prefix_tokens),
            **NOTHING_WRITTEN,
            **self._common,
        )
        return likeliest(
            [
                score_of(num_prefix_tokens, choice, meta.input_token_logprobs or ())
                for choice, meta in zip(choices, (one.meta_info for one in scored), strict=True)
            ]
        )

    def _params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._sampling, **params, **self._common}

    def _rendered_markers(self) -> RoleMarkers:
        try:
            begin = self._text_of(self._client.call(calls.tokenize(prompt="")))
            return rendered_markers(self._render, begin)
        except (ClientError, ValueError) as error:
            raise LanguageError(
                f"the server's chat template is not to be had ({error}); name one: "
                "HttpBackend(client, chat_template=…)"
            ) from error

    def _render(self, messages: Sequence[Mapping[str, str]], opens_answer: bool) -> str:
        asked = calls.tokenize(messages=list(messages), add_generation_prompt=opens_answer)
        return self._text_of(self._client.call(asked))

    def _text_of(self, ids: list[int]) -> str:
        return self._client.call(calls.detokenize(ids)) if ids else ""
