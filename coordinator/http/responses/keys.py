"""What is done with each key of a body of /v1/responses. Pure.

The table is what the parser obeys, what docs/compatibility.md prints, and what the tests go
through.
"""

from __future__ import annotations

from coordinator.http.native.keys import Key
from coordinator.http.openai.keys import GRAMMAR_KEYS, ONLY_A_HINT, SAMPLING_KEYS

STATELESS = "nothing is stored: send the whole conversation as input"
NOT_TAKEN = {"n", *(key.name for key in GRAMMAR_KEYS)}
"""Keys of chats that this endpoint has nothing of."""

RESPONSE_KEYS = (
    Key("model", "supported", 'a served name, the model\'s path or "default"; may be left out'),
    Key("input", "supported", "a text, or items: messages, calls, their outputs, reasoning"),
    Key("instructions", "supported", "a system message before the input"),
    Key("stream", "supported", "server-sent events, the last one has the whole response"),
    Key("max_output_tokens", "supported", "an answer ends with the context at the latest"),
    *(key for key in SAMPLING_KEYS if key.name not in NOT_TAKEN),
    Key("text", "supported", "format: text, json_object, json_schema"),
    Key("tools", "supported", "function and custom; others are not told to the model"),
    Key("tool_choice", "supported", "none, auto, required, a named one, allowed_tools"),
    Key("parallel_tool_calls", "supported", "false: one call at most where calls are forced"),
    Key("reasoning", "supported", "effort is a variable of the template; none: no thinking"),
    Key("include", "supported", "reasoning.encrypted_content; others have nothing to show"),
    Key("metadata", "supported", "is in the response"),
    Key("rid", "supported", "the id of the response, for /abort_request too; made up when absent"),
    Key("cache_salt", "supported", "a cache namespace of its own"),
    Key("extra_key", "supported", "joined with cache_salt"),
    Key("priority", "supported", "higher first"),
    Key("chat_template_kwargs", "supported", "variables of the template"),
    Key("store", "ignored", "nothing is stored; the response says so"),
    Key("truncation", "ignored", "prompts are not shortened; one that is too long is a 400"),
    Key("stream_options", "ignored", "events are not padded"),
    Key("user", "ignored", ONLY_A_HINT),
    Key("prompt_cache_key", "ignored", "the prompt itself finds what is cached"),
    Key("prompt_cache_retention", "ignored", "pages stay as long as there is room"),
    Key("prompt_cache_options", "ignored", "the prompt itself finds what is cached"),
    Key("safety_identifier", "ignored", ONLY_A_HINT),
    Key("service_tier", "ignored", "there is one tier"),
    Key("max_tool_calls", "ignored", "it is for tools that the server calls; there are none"),
    Key("client_metadata", "ignored", ONLY_A_HINT),
    Key("previous_response_id", "refused", STATELESS),
    Key("conversation", "refused", STATELESS),
    Key("background", "refused", STATELESS),
    Key("prompt", "refused", "templates are not stored; send their text"),
    Key("context_management", "refused", "input is rendered as it comes"),
    Key("top_logprobs", "refused", "/v1/chat/completions has them"),
    Key("n", "refused", "a response has one answer", neutral=(1,)),
    Key("moderation", "refused", "nothing is moderated"),
)
REFUSED = {key.name: key for key in RESPONSE_KEYS if key.treatment == "refused"}
