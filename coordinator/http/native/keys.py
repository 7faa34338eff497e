"""What is done with each key of a body of /generate that SGLang knows. Pure.

This table is what the parser obeys, what docs/compatibility.md prints, and what the tests go
through. A key that would change the answer and that kvrelay lacks is refused, never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from coordinator.http.errors import BadRequest

Treatment = Literal["supported", "ignored", "refused", "not yet"]
"""`ignored`: any value is accepted, since it would not change the answer. `refused` and `not yet`:
only a value that asks for nothing is accepted; anything else is a 400 that names the key."""


@dataclass(frozen=True)
class Key:
    """One key, what is done with it, and a phrase that says why or what it does."""

    name: str
    treatment: Treatment
    note: str
    neutral: tuple[object, ...] = ()
    """Values that ask for nothing, besides those that `is_neutral` knows."""


NO_MEDIA = "the models that are served read text only"
NO_LORA = "adapters are not served"
OWN_ROUTING = "kvrelay decides itself which node does what"
TEXT_ONLY_OUTPUT = "only tokens, text and logprobs are returned"

TOP_LEVEL = (
    Key("text", "supported", "a prompt, or a list of prompts"),
    Key("input_ids", "supported", "token ids of a prompt, or a list of such lists"),
    Key("sampling_params", "supported", "one object for all prompts, or one for each"),
    Key(
        "stream", "supported", "events with all text so far; with --stream-output only what is new"
    ),
    Key("rid", "supported", "the client's name for the request; rid_0, rid_1, … in a batch"),
    Key("request_id", "supported", "another name for rid"),
    Key(
        "return_logprob",
        "supported",
        "logprobs of the answer, and of the prompt from logprob_start_len on",
    ),
    Key("logprob_start_len", "supported", "input logprobs from this position on; -1: none"),
    Key("top_logprobs_num", "supported", "0 to 128 likeliest tokens per position"),
    Key("token_ids_logprob", "supported", "ids for all prompts, or a list of ids for each"),
    Key("return_text_in_logprobs", "supported", "each id with its text"),
    Key("return_prompt_token_ids", "supported", "adds prompt_token_ids to the answer"),
    Key("cache_salt", "supported", "a cache namespace of its own"),
    Key("extra_key", "supported", "joined with cache_salt"),
    Key("regex", "supported", "the whole answer matches it"),
    Key("json_schema", "supported", "JSON as a string, or the object itself"),
    Key("ebnf", "supported", "from `root` on; Lark too"),
    Key("structural_tag", "supported", "JSON as a string, or the object itself"),
    Key("event_ids", "supported", "each event has an id: line, the number of tokens so far"),
    Key(
        "resume_token",
        "supported",
        "of a stream that broke off: with the same body and rid, another coordinator goes on",
    ),
    Key("priority", "supported", "higher first; after 30 s of waiting as the highest that waits"),
    Key("session_params", "supported", "continue, fork, roll back or replace turns; n must be 1"),
    Key("session_id", "supported", "another name for session_params.id"),
    Key("image_data", "refused", NO_MEDIA),
    Key("video_data", "refused", NO_MEDIA),
    Key("audio_data", "refused", NO_MEDIA),
    Key("input_embeds", "refused", "prompts are text or token ids"),
    Key("positional_embed_overrides", "refused", "prompts are text or token ids"),
    Key("use_audio_in_video", "refused", NO_MEDIA),
    Key("lora_path", "refused", NO_LORA),
    Key("lora_id", "refused", NO_LORA),
    Key("custom_logit_processor", "refused", "code of clients is not run"),
    Key("max_thinking_tokens", "refused", "thinking has no budget of its own"),
    Key("require_reasoning", "refused", "text of reasoning is not told from the rest"),
    Key("watermark", "refused", "answers carry no watermark"),
    Key("return_hidden_states", "refused", TEXT_ONLY_OUTPUT),
    Key("return_routed_experts", "refused", TEXT_ONLY_OUTPUT),
    Key("return_indexer_topk", "refused", TEXT_ONLY_OUTPUT),
    Key("return_sampling_mask", "refused", TEXT_ONLY_OUTPUT),
    Key("return_entropy", "refused", TEXT_ONLY_OUTPUT),
    Key("return_bytes", "refused", TEXT_ONLY_OUTPUT),
    Key("return_flat_raw_top_logprobs", "refused", "logprobs come as lists of entries"),
    Key("return_flat_raw_top_logprobs_b64", "refused", "logprobs come as lists of entries"),
    Key("multi_item_delimiter_indices", "refused", "items of a prompt are not scored"),
    Key("bootstrap_host", "refused", OWN_ROUTING),
    Key("bootstrap_port", "refused", OWN_ROUTING),
    Key("bootstrap_room", "refused", OWN_ROUTING),
    Key("bootstrap_pair_key", "refused", OWN_ROUTING),
    Key("decode_tp_size", "ignored", OWN_ROUTING),
    Key("data_parallel_rank", "ignored", OWN_ROUTING),
    Key("routed_dp_rank", "ignored", OWN_ROUTING),
    Key("disagg_prefill_dp_rank", "ignored", OWN_ROUTING),
    Key("kv_router_hint", "ignored", OWN_ROUTING),
    Key("routing_key", "ignored", OWN_ROUTING),
    Key("modalities", "ignored", "it describes image_data, which is refused"),
    Key("mm_hashes", "ignored", "it describes image_data, which is refused"),
    Key("mm_content_hashes", "ignored", "it describes image_data, which is refused"),
    Key("video_config", "ignored", "it describes video_data, which is refused"),
    Key("images_config", "ignored", "it describes image_data, which is refused"),
    Key("max_dynamic_patch", "ignored", "it describes image_data, which is refused"),
    Key("min_dynamic_patch", "ignored", "it describes image_data, which is refused"),
    Key("image_max_dynamic_patch", "ignored", "it describes image_data, which is refused"),
    Key("video_max_dynamic_patch", "ignored", "it describes video_data, which is refused"),
    Key("routed_experts_start_len", "ignored", "it belongs to return_routed_experts"),
    Key("log_metrics", "ignored", "requests are counted, whoever sent them"),
    Key("no_logs", "ignored", "no text of a request is ever logged"),
    Key("custom_labels", "ignored", "metrics have no labels of clients"),
    Key("conversation_id", "ignored", "the prompt itself finds what is cached"),
    Key("background", "ignored", "a client that disconnects cancels its request"),
    Key("external_trace_header", "ignored", "requests are not traced"),
    Key("validation_time", "ignored", "internal to SGLang"),
    Key("received_time", "ignored", "internal to SGLang"),
    Key("http_worker_ipc", "ignored", "internal to SGLang"),
    Key("need_wait_for_mm_inputs", "ignored", "internal to SGLang"),
    Key("num_items_assigned", "ignored", "internal to SGLang"),
    Key("encoder_urls", "ignored", "internal to SGLang"),
)

SAMPLING = (
    Key("max_new_tokens", "supported", "128; null: up to the context; 0: prefill only"),
    Key("min_new_tokens", "supported", "no end token before so many tokens"),
    Key("stop", "supported", "up to 32 strings"),
    Key("stop_token_ids", "supported", "ignored with ignore_eos, as in SGLang"),
    Key("stop_regex", "supported", "up to 32 patterns; what matched is trimmed, as a stop string"),
    Key("temperature", "supported", "0, and less than 1e-6: the likeliest token"),
    Key("top_p", "supported", "(0, 1]"),
    Key("top_k", "supported", "-1: all tokens"),
    Key("min_p", "supported", "[0, 1]"),
    Key("frequency_penalty", "supported", "[-2, 2]"),
    Key("presence_penalty", "supported", "[-2, 2]"),
    Key("repetition_penalty", "supported", "(0, 2]; SGLang also takes 0, which divides by it"),
    Key("n", "supported", "1 to 64, another number for each prompt if need be"),
    Key("ignore_eos", "supported", "neither the model's end tokens nor stop_token_ids end it"),
    Key("skip_special_tokens", "supported", "of the text of the answer"),
    Key(
        "spaces_between_special_tokens",
        "ignored",
        "it has no effect on the fast tokenizers that are served, as in SGLang",
    ),
    Key("no_stop_trim", "supported", "the text keeps the end token, stop string or match"),
    Key("stream_interval", "supported", "the first token is sent at once, whatever the interval"),
    Key("logit_bias", "supported", 'up to 1024 entries {"id": bias}'),
    Key("sampling_seed", "supported", "any int64; the seed alone decides, whatever the batch"),
    Key(
        "custom_params", "ignored", "it is read by custom logit processors only, which are refused"
    ),
    Key("regex", "supported", "the whole answer matches it"),
    Key("json_schema", "supported", "JSON as a string, or the object itself"),
    Key("ebnf", "supported", "from `root` on; Lark too"),
    Key("structural_tag", "supported", "JSON as a string, or the object itself"),
    Key("beam_width", "refused", "beams are not searched", neutral=(1,)),
)

REFUSED_TOP_LEVEL = {key.name: key for key in TOP_LEVEL if key.treatment in ("refused", "not yet")}
REFUSED_SAMPLING = {key.name: key for key in SAMPLING if key.treatment in ("refused", "not yet")}


def refuse_unsupported(raw: dict[str, Any], keys: dict[str, Key], where: str = "") -> None:
    """Raises BadRequest if one of `keys`, which are not supported, asks for something in `raw`.
    `where` goes before the key's name."""
    for name in raw.keys() & keys.keys():
        key = keys[name]
        value = raw[name]
        if is_neutral(value) or _is_one_of(value, key.neutral):
            continue
        if key.treatment == "refused":
            why = f"is not supported: {key.note}; leave it out"
        else:
            why = "is not supported by this version of kvrelay; leave it out"
        raise BadRequest(f"{where}{name} {why}", f"{where}{name}".replace(": ", "."))


def is_neutral(value: object) -> bool:
    """Returns True for a value that asks for nothing: null, false, "", {}, and lists of such,
    however deep."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif not (one is None or one is False or (isinstance(one, str | dict) and not one)):
            return False
    return True


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in neutral)
