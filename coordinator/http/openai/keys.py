"""What is done with each key of a body of /v1/chat/completions and /v1/completions: OpenAI's, and
those that SGLang and vLLM add. Pure.

These tables are what the parsers obey, what docs/compatibility.md prints, and what the tests go
through.
"""

from __future__ import annotations

from coordinator.http.native.keys import NO_LORA, NO_MEDIA, OWN_ROUTING, TEXT_ONLY_OUTPUT, Key

ONLY_A_HINT = "nothing of the answer depends on it"

SAMPLING_KEYS = (
    Key("temperature", "supported", "the model's own default, else 1; 0: the likeliest token"),
    Key("top_p", "supported", "(0, 1]; the model's own default, else 1"),
    Key("top_k", "supported", "-1 and 0: all tokens; the model's own default, else all"),
    Key("min_p", "supported", "[0, 1]"),
    Key("frequency_penalty", "supported", "[-2, 2]"),
    Key("presence_penalty", "supported", "[-2, 2]"),
    Key("repetition_penalty", "supported", "(0, 2]"),
    Key("n", "supported", "1 to 64"),
    Key("seed", "supported", "any int64; answer i of n gets seed + i"),
    Key("stop", "supported", "a string or up to 32"),
    Key("stop_token_ids", "supported", "ids that end the answer"),
    Key("stop_regex", "supported", "up to 32 patterns"),
    Key("min_tokens", "supported", "no end token before so many tokens"),
    Key("ignore_eos", "supported", "the model's end tokens do not end the answer"),
    Key("logit_bias", "supported", 'up to 1024 entries {"id": bias}'),
    Key("skip_special_tokens", "supported", "of the text of the answer"),
    Key("spaces_between_special_tokens", "ignored", "no effect on the tokenizers that are served"),
    Key("no_stop_trim", "supported", "the text keeps what ended it"),
    Key("include_stop_str_in_output", "supported", "another name for no_stop_trim"),
)
GRAMMAR_KEYS = (
    Key("regex", "supported", "the whole text matches it"),
    Key("ebnf", "supported", "from `root` on; Lark too"),
    Key("json_schema", "supported", "a JSON schema, as an object or a string"),
    Key("structural_tag", "supported", "as an object or a string"),
    Key("structured_outputs", "supported", "one of json, regex, choice, grammar, structural_tag"),
    Key("guided_json", "supported", "vLLM's name for json_schema"),
    Key("guided_regex", "supported", "vLLM's name for regex"),
    Key("guided_choice", "supported", "the text is one of these"),
    Key("guided_grammar", "supported", "vLLM's name for ebnf"),
    Key("guided_decoding_backend", "ignored", "one library knows all grammars"),
    Key("guided_whitespace_pattern", "refused", "white space of JSON is bounded, not chosen"),
)
REQUEST_KEYS = (
    Key("model", "supported", 'a served name, the model\'s path or "default"; may be left out'),
    Key("stream", "supported", "server-sent events, the last one is [DONE]"),
    Key("stream_options", "supported", "include_usage, continuous_usage_stats"),
    Key("rid", "supported", "the id of the answer, for /abort_request too; made up when absent"),
    Key("request_id", "supported", "another name for rid"),
    Key("cache_salt", "supported", "a cache namespace of its own"),
    Key("extra_key", "supported", "joined with cache_salt"),
    Key("priority", "supported", "higher first (in vLLM lower ones go first)"),
    Key("return_token_ids", "supported", "adds token_ids to choices and prompt_token_ids"),
    Key("user", "ignored", ONLY_A_HINT),
    Key("lora_path", "refused", NO_LORA),
    Key("lora_request", "refused", NO_LORA),
    Key("allowed_token_ids", "refused", "use a grammar or logit_bias"),
    Key("bad_words", "refused", "use logit_bias"),
    Key("logits_processors", "refused", "code of clients is not run"),
    Key("custom_logit_processor", "refused", "code of clients is not run"),
    Key("custom_params", "ignored", "it is for custom logit processors, which are refused"),
    Key("vllm_xargs", "ignored", "it is for plugins"),
    Key("use_beam_search", "refused", "beams are not searched"),
    Key("length_penalty", "refused", "beams are not searched", neutral=(1, 1.0)),
    Key("truncate_prompt_tokens", "refused", "prompts are not shortened"),
    Key("return_tokens_as_token_ids", "refused", "use return_token_ids"),
    Key("return_hidden_states", "refused", TEXT_ONLY_OUTPUT),
    Key("return_routed_experts", "refused", TEXT_ONLY_OUTPUT),
    Key("session_params", "refused", "the messages themselves find what is cached"),
    Key("bootstrap_host", "refused", OWN_ROUTING),
    Key("bootstrap_port", "refused", OWN_ROUTING),
    Key("bootstrap_room", "refused", OWN_ROUTING),
    Key("data_parallel_rank", "ignored", OWN_ROUTING),
    Key("kv_transfer_params", "ignored", OWN_ROUTING),
)
CHAT_KEYS = (
    Key("messages", "supported", "rendered with the model's own chat template"),
    *REQUEST_KEYS,
    Key("max_completion_tokens", "supported", "up to the context when absent"),
    Key("max_tokens", "supported", "the older name of max_completion_tokens"),
    *SAMPLING_KEYS,
    Key("logprobs", "supported", "logprobs of the answer's tokens"),
    Key("top_logprobs", "supported", "0 to 20 likeliest tokens, with logprobs"),
    Key("response_format", "supported", "text, json_object, json_schema, structural_tag"),
    *GRAMMAR_KEYS,
    Key("tools", "supported", "functions that the model may call"),
    Key("tool_choice", "supported", "none, auto, required, a named one, allowed_tools"),
    Key("parallel_tool_calls", "supported", "false: one call at most where calls are forced"),
    Key("reasoning_effort", "supported", "a variable of the template; none: no thinking"),
    Key("separate_reasoning", "supported", "false: thoughts are part of the content"),
    Key("stream_reasoning", "supported", "false: thoughts come as one piece"),
    Key("include_reasoning", "supported", "false: thoughts are left out"),
    Key("chat_template_kwargs", "supported", "variables of the template"),
    Key("add_generation_prompt", "supported", "true; false with continue_final_message"),
    Key("continue_final_message", "supported", "the answer goes on with the last message"),
    Key("add_special_tokens", "supported", "false: templates write their own"),
    Key("documents", "supported", "texts for templates that show some"),
    Key("chat_template", "refused", "templates of clients are not run; see --chat-template"),
    Key("functions", "refused", "use tools"),
    Key("function_call", "refused", "use tool_choice", neutral=("none", "auto")),
    Key("modalities", "refused", "answers are text", neutral=(["text"],)),
    Key("audio", "refused", NO_MEDIA),
    Key("mm_processor_kwargs", "refused", NO_MEDIA),
    Key("web_search_options", "refused", "nothing is searched"),
    Key("verbosity", "refused", "models have no such switch", neutral=("medium",)),
    Key("prompt_logprobs", "refused", "/v1/completions has them with echo"),
    Key("echo", "refused", "use continue_final_message"),
    Key("prediction", "ignored", ONLY_A_HINT),
    Key("prompt_cache_key", "ignored", "the prompt itself finds what is cached"),
    Key("prompt_cache_retention", "ignored", "pages stay as long as there is room"),
    Key("safety_identifier", "ignored", ONLY_A_HINT),
    Key("service_tier", "ignored", "there is one tier"),
    Key("store", "ignored", "answers are not kept"),
    Key("metadata", "ignored", "answers are not kept"),
)
COMPLETION_KEYS = (
    Key("prompt", "supported", "a text, a list of texts, ids, or a list of lists of ids"),
    *REQUEST_KEYS,
    Key("max_tokens", "supported", "16 when absent; 0 with echo: the prompt alone"),
    *SAMPLING_KEYS,
    Key("echo", "supported", "the prompt before the answer, with its logprobs if asked for"),
    Key("logprobs", "supported", "0 to 20 likeliest tokens beside the chosen one"),
    Key("best_of", "supported", "only as many as n: answers are not ranked"),
    Key("suffix", "refused", "text is not filled in between"),
    Key("response_format", "supported", "text, json_object, json_schema, structural_tag"),
    *GRAMMAR_KEYS,
    Key("add_special_tokens", "supported", "true: a text gets what the model expects around it"),
    Key("prompt_logprobs", "refused", "use echo with logprobs"),
    Key("prompt_embeds", "refused", "prompts are text or token ids"),
)


def refused(keys: tuple[Key, ...]) -> dict[str, Key]:
    """Returns the keys of a table that are not supported, by name."""
    return {key.name: key for key in keys if key.treatment in ("refused", "not yet")}


REFUSED_IN_CHATS = refused(CHAT_KEYS)
REFUSED_IN_COMPLETIONS = refused(COMPLETION_KEYS)
