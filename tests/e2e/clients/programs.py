"""Programs for SGLang's front end, one for each of its primitives: `programs.py URL NAME`.

This file runs in an environment that has SGLang's own package and nothing of kvrelay, as a user's
file would. It prints what the program gave as one line of JSON; the tests judge it.
"""

import asyncio
import json
import os
import sys
import traceback

import sglang as sgl

QUESTION = "<|user|>My dog is called Bramo. What is my dog called?<|end|><|assistant|>"
CHOICES = ["Bramo", "Oslen", "a window"]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def generated(prompt, **params):
    """Runs one `gen` after a prompt; its text, the whole text and what the server told of it."""

    @sgl.function
    def program(s):
        s += prompt + sgl.gen("answer", **({"temperature": 0, "max_tokens": 16} | params))

    state = program.run()
    state.sync()
    if state.error() is not None:
        raise state.error()
    return {
        "answer": state["answer"],
        "text": state.text(),
        "meta_info": state.get_meta_info("answer"),
    }


def gen_text():
    return generated(QUESTION)


def gen_max_tokens():
    return generated("The garden", max_tokens=5, ignore_eos=True)


def gen_min_tokens():
    return generated(QUESTION, min_tokens=12)


def gen_stop():
    return generated(QUESTION, stop="Bra")


def gen_stop_token_ids():
    return generated(QUESTION, stop_token_ids=[5])


def gen_stop_regex():
    return generated(QUESTION, stop_regex="[.]")


def gen_sampling_params():
    return generated(
        "The garden",
        temperature=0.8,
        top_p=0.9,
        top_k=20,
        min_p=0.05,
        frequency_penalty=0.1,
        presence_penalty=0.1,
    )


def gen_regex():
    return generated("A number of a house: ", regex="(12|34)-[a-c]{3}")


def gen_json_schema():
    return generated("A person: ", json_schema=json.dumps(PERSON), max_tokens=120)


def gen_dtypes():
    @sgl.function
    def program(s):
        s += "The age is " + sgl.gen_int("int", max_tokens=6)
        s += " and a word is " + sgl.gen_string("str", max_tokens=24)
        s += " and the height is " + sgl.gen("float", dtype=float, max_tokens=8)
        s += " and it is " + sgl.gen("bool", dtype=bool, max_tokens=8)

    state = program.run(temperature=0)
    return {name: state[name] for name in ("int", "str", "float", "bool")}


def gen_choices():
    return _selected(sgl.gen("answer", choices=CHOICES))


def select():
    return _selected(sgl.select("answer", CHOICES))


def select_greedy():
    return _selected(sgl.select("answer", CHOICES, choices_method=sgl.greedy_token_selection))


def select_unconditional():
    return _selected(
        sgl.select("answer", CHOICES, choices_method=sgl.unconditional_likelihood_normalized)
    )


def agent_loop():
    """Goes on as it chooses itself, and uses in between what it generated."""

    @sgl.function
    def program(s):
        s += "Action 1: Search [Bramo].\nAction 2: Finish [Oslen].\n"
        for i in range(4):
            s += f"Thought {i}:" + sgl.gen(stop=[".", "\n"], max_tokens=12) + ".\n"
            s += f"Action {i}: " + sgl.select(f"action_{i}", ["Search", "Finish"])
            s += " [" + sgl.gen(f"argument_{i}", stop="]", max_tokens=12) + "].\n"
            if s[f"action_{i}"] == "Finish":
                break
            s += f"Observation {i}: nothing about {s[f'argument_{i}']}.\n"

    state = program.run(temperature=0)
    actions = [state[f"action_{i}"] for i in range(4) if f"action_{i}" in state]
    arguments = [state[f"argument_{i}"] for i in range(len(actions))]
    return {"text": state.text(), "actions": actions, "arguments": arguments}


def json_by_parts():
    """Builds a JSON document of constants and typed values."""

    @sgl.function
    def program(s):
        s += "A town as JSON:\n"
        with s.var_scope("document"):
            s += '{"name": ' + sgl.gen_string() + ', "population": ' + sgl.gen_int()
            s += ', "height": ' + sgl.gen(dtype=float) + "}"

    return program.run(temperature=0, max_new_tokens=64)["document"]


def _selected(choice):
    @sgl.function
    def program(s):
        s += QUESTION + "Your dog is called " + choice

    state = program.run()
    return {"answer": state["answer"], "meta_info": state.get_meta_info("answer")}


def fork_and_gather():
    @sgl.function
    def program(s):
        s += QUESTION
        forks = s.fork(3)
        forks += lambda i: f"Number {i}:"
        forks += sgl.gen("part", temperature=0, max_tokens=4, ignore_eos=True)
        forks.join()

    state = program.run()
    return {"parts": state["part"], "text": state.text()}


def fork_and_append():
    @sgl.function
    def program(s):
        s += QUESTION
        forks = s.fork(2)
        forks += lambda i: f"Number {i}:"
        forks += sgl.gen("part", temperature=0, max_tokens=4, ignore_eos=True)
        forks.join("concate_and_append")
        s += sgl.gen("end", temperature=0, max_tokens=4, ignore_eos=True)

    state = program.run()
    return {"text": state.text(), "end": state["end"]}


def fork_and_append_pages():
    """As `fork_and_append`, with the switch on that asks the server to join what it cached."""
    sgl.global_config.enable_parallel_encoding = True
    return fork_and_append()


def copy():
    @sgl.function
    def program(s):
        s += QUESTION
        with s.copy() as other:
            other += "Your" + sgl.gen("aside", temperature=0, max_tokens=4)
        s += sgl.gen("answer", temperature=0, max_tokens=16)

    state = program.run()
    return {"aside": state["aside"], "answer": state["answer"], "text": state.text()}


def roles():
    @sgl.function
    def program(s):
        s += sgl.system("You answer in short.")
        s += sgl.user("My dog is called Bramo. What is my dog called?")
        s += sgl.assistant(sgl.gen("answer", temperature=0, max_tokens=8))
        with s.user():
            s += "And again?"
        with s.assistant():
            s += sgl.gen("again", temperature=0, max_tokens=8)

    state = program.run()
    return {
        "text": state.text(),
        "messages": state.messages(),
        "answers": [state["answer"], state["again"]],
    }


def roles_of_a_named_template():
    url = sgl.global_config.default_backend.base_url
    backend = sgl.RuntimeEndpoint(url, chat_template_name="llama-3-instruct")
    sgl.set_default_backend(backend)
    return roles()


def var_scope_and_bind():
    @sgl.function
    def program(s, name):
        s += f"<|user|>My dog is called {name}. What is my dog called?<|end|><|assistant|>"
        with s.var_scope("scope"):
            s += sgl.gen("answer", temperature=0, max_tokens=16) + "<|end|>"

    state = program.bind(name="Bramo").run()
    return {"scope": state["scope"], "text": state.text()}


def run_batch():
    states = _asks_by_name().run_batch([{"name": name} for name in _NAMES], progress_bar=True)
    return [state["answer"] for state in states]


def run_batch_as_generator():
    batch = [{"name": name} for name in _NAMES]
    states = _asks_by_name().run_batch(batch, num_threads=2, generator_style=True)
    return [state["answer"] for state in states]


def cache():
    """Sends the beginning that all calls of a program share before the first of them."""
    sgl.flush_cache()
    program = _asks_by_name()
    program.cache()
    state = program.run(name="Bramo")
    return {"answer": state["answer"], "meta_info": state.get_meta_info("answer")}


_NAMES = ["Bramo", "Tavik", "Zorin", "Milo", "Pelka", "Oslen"]


def _asks_by_name():
    @sgl.function
    def program(s, name):
        s += "<|user|>The morning was quiet and the garden was full of birds. The old clock stood "
        s += "near the window for a long time. My dog is called "
        s += name + ". What is my dog called?<|end|><|assistant|>"
        s += sgl.gen("answer", temperature=0, max_tokens=16)

    return program


def _streamed():
    """Streams an answer that is long enough to come in several pieces on a busy machine."""

    @sgl.function
    def program(s):
        s += QUESTION + sgl.gen("answer", temperature=0, max_tokens=300, ignore_eos=True)
        s += "<|end|>"

    return program.run(stream=True)


def stream():
    state = _streamed()
    return {"pieces": list(state.text_iter()), "text": state.text()}


def stream_of_a_variable():
    state = _streamed()
    return {"pieces": list(state.text_iter("answer")), "answer": state["answer"]}


def stream_async():
    async def pieces(state):
        return [piece async for piece in state.text_async_iter("answer", return_meta_data=True)]

    state = _streamed()
    got = asyncio.run(pieces(state))
    return {
        "pieces": [piece for piece, _ in got],
        "ids": [meta["id"] for _, meta in got],
        "answer": state["answer"],
    }


def return_logprob():
    return generated(
        QUESTION,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
        max_tokens=4,
    )


def server_info():
    sgl.flush_cache()
    return sgl.get_server_info()


def an_error():
    """Asks for what is refused: the front end keeps the server's words."""
    try:
        generated(QUESTION, temperature=-1)
    except RuntimeError as error:
        return {"error": error.args[0]}
    return {}


def main(url, name):
    sgl.set_default_backend(sgl.RuntimeEndpoint(url))
    try:
        print(json.dumps(globals()[name]()), flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once: the front end leaves threads behind that would wait for ever
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
