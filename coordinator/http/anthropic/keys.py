"""What is done with each key of a body of /v1/messages, and which of them a count of tokens reads.
Pure.

The table is what the parser obeys, what docs/compatibility.md prints, and what the tests go
through.
"""

from __future__ import annotations

from coordinator.http.native.keys import Key

NOT_KEPT = "nothing of a request is kept"
ONE_PLACE = "there is one tier, in one place"

MESSAGE_KEYS = (
    Key("model", "supported", 'a served name, the model\'s path or "default"; may be left out'),
    Key("messages", "supported", "text, tool_use, tool_result, thinking, redacted_thinking"),
    Key("max_tokens", "supported", "required; an answer ends with the context at the latest"),
    Key("system", "supported", "a text, or blocks of text"),
    Key("stop_sequences", "supported", "up to 32; the one that was met is stop_sequence"),
    Key("stream", "supported", "server-sent events, the last one is message_stop"),
    Key("temperature", "supported", "the model's own default, else 1; 0: the likeliest token"),
    Key("top_p", "supported", "(0, 1]; the model's own default, else 1"),
    Key("top_k", "supported", "0: all tokens; the model's own default, else all"),
    Key("tools", "supported", "tools with an input_schema; those of Anthropic's servers are a 400"),
    Key("tool_choice", "supported", "auto, any, tool, none; disable_parallel_tool_use"),
    Key(
        "thinking", "supported", "enabled, adaptive, disabled; absent: as the model's template has"
    ),
    Key("output_config", "supported", "effort is a variable of the template; format: json_schema"),
    Key("output_format", "supported", "the older name of output_config.format"),
    Key("rid", "supported", "the id of the message, for /abort_request too; made up when absent"),
    Key("cache_salt", "supported", "a cache namespace of its own"),
    Key("extra_key", "supported", "joined with cache_salt"),
    Key("priority", "supported", "higher first"),
    Key("chat_template_kwargs", "supported", "variables of the template"),
    Key(
        "cache_control", "ignored", "whatever prompts have in common is cached, here and in blocks"
    ),
    Key("metadata", "ignored", NOT_KEPT),
    Key("service_tier", "ignored", ONE_PLACE),
    Key("inference_geo", "ignored", ONE_PLACE),
    Key("speed", "ignored", ONE_PLACE),
    Key("context_management", "ignored", "messages are rendered as they come"),
    Key(
        "diagnostics", "ignored", "POST /admin/route/explain tells where a prompt leaves the cache"
    ),
    Key("betas", "ignored", "nothing depends on them"),
    Key("container", "refused", "code is not run"),
    Key("mcp_servers", "refused", "tools are called by the client"),
)
REFUSED = {key.name: key for key in MESSAGE_KEYS if key.treatment == "refused"}
