"""Programs for packages that ask through OpenAI's API, one for each use: `programs.py URL NAME`.

This file runs in an environment that has these packages and nothing of kvrelay, as a user's file
would. It prints what the program gave as one line of JSON; the tests judge it.
"""

import asyncio
import json
import os
import sys

import instructor
import litellm
from openai import OpenAI
from pydantic import BaseModel, Field

QUESTION = "My dog is called Bramo. What is my dog called?"
CHAT = [{"role": "user", "content": QUESTION}]


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 12}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


def _extracted(url, mode):
    """What instructor makes of an answer whose form it asks for in one of its ways."""
    openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    client = instructor.from_openai(openai, mode=mode)
    asked = {"model": "default", "messages": CHAT, "max_tokens": 80, "temperature": 0}
    person = client.chat.completions.create(response_model=Person, max_retries=1, **asked)
    partial = client.chat.completions.create_partial(response_model=Person, **asked)
    return {"whole": person.model_dump(), "streamed": list(partial)[-1].model_dump()}


def instructor_tools(url):
    return _extracted(url, instructor.Mode.TOOLS)


def instructor_json_schema(url):
    return _extracted(url, instructor.Mode.JSON_SCHEMA)


def _completion(url, **given):
    common = {"model": "openai/default", "messages": CHAT, "temperature": 0, "max_tokens": 24}
    return litellm.completion(api_base=f"{url}/v1", api_key="none", **common | given)


def litellm_chat(url):
    answer = _completion(url)
    usage = answer.usage
    return {
        "text": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "tokens": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
        "cached": usage.prompt_tokens_details.cached_tokens,
    }


def litellm_stream(url):
    events = list(_completion(url, stream=True, stream_options={"include_usage": True}))
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    return {"text": text, "whole": _completion(url).choices[0].message.content}


def litellm_event_loop(url):
    async def run():
        asked = {"model": "openai/default", "messages": CHAT, "max_tokens": 24, "temperature": 0}
        stream = await litellm.acompletion(
            api_base=f"{url}/v1", api_key="none", stream=True, **asked
        )
        return "".join([e.choices[0].delta.content or "" async for e in stream])

    return {"text": asyncio.run(run()), "whole": _completion(url).choices[0].message.content}


def litellm_tools(url):
    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    answer = _completion(url, tools=[WEATHER], max_tokens=80, **forced)
    (call,) = answer.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": json.loads(call.function.arguments)}


def litellm_error(url):
    try:
        _completion(url, messages=[{"role": "user", "content": "word " * 20_000}])
    except litellm.ContextWindowExceededError as error:
        return {"status": error.status_code, "message": error.message}


if __name__ == "__main__":
    result = globals()[sys.argv[2]](sys.argv[1])
    print(json.dumps(result), flush=True)
    os._exit(0)  # threads of the packages may wait for the internet
