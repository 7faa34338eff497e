"""`kvrelay demo`: a cluster of two prefill and two decode nodes, shown at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from rich.console import Console

from infra import models
from infra.cluster import ClusterPlan, LocalCluster
from infra.tables.stats import show_stats
from infra.up import interrupt_on_signals, stop_undisturbed, watch
from kvrelay.answers import Generated
from kvrelay.client import Client
from protocol.errors import UserError

STATS_TIMEOUT_S = 5.0
"""How long what an answer changes may take to show in the coordinator's statistics."""

NOTES = (
    "Here are my notes from today. The morning was quiet and the garden was full of birds. "
    "My dog is called Bramo. The old clock stood near the window for a long time. "
    "The code of the blue door is 4271. After the rain the road was narrow and dusty. "
    "My neighbour is called Tivon. The letter was seen on the table in the evening. "
    "The password of the library is morvel. The river was calm and the boat was empty. "
    "The price of the red bicycle is 385. In the village the market was noisy before lunch. "
    "My sister lives in Oslen. The kettle made a noise and the lamp was forgotten. "
)
QUESTIONS = ("What is the code of the blue door?", "What is my dog called?")
STORY = "Tell me a short story about a girl called Lina."


class StepFailed(UserError):
    """A step of the demo did not give what it promises."""


def demo(port: int, admin_token: str, once: bool) -> None:
    """Starts a cluster, shows it at work, and serves until Ctrl-C unless `once`.

    Raises StepFailed, ConfigError or StartError.
    """
    console = Console()
    console.print(
        "[bold]kvrelay[/bold]: starting Redis, one coordinator, 2 prefill and 2 decode nodes …"
    )
    flags = {"model_path": str(models.EMBEDDED)}
    # An idle decode node would compute the prompts itself, and no page would move.
    routing = {"policy": "disaggregate", "admin_token": admin_token}
    # The coordinator reads its keys from the environment too.
    api_key = os.environ.get("KVRELAY_API_KEY", "").partition(",")[0]
    cluster = LocalCluster(
        ClusterPlan(
            num_prefill=2,
            num_decode=2,
            host="127.0.0.1",
            port=port,
            redis_url=os.environ.get("KVRELAY_REDIS_URL", ""),
            coordinator_flags=flags | routing,
            node_flags=flags,
            api_key=api_key,
        )
    )
    interrupt_on_signals()
    try:
        cluster.start()
        with Client(cluster.url, cluster.admin_token, api_key=api_key) as client:
            show(client, console)
        if not once:
            _keep_serving(cluster, console)
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        stop_undisturbed(cluster)


def show(client: Client, console: Console) -> None:
    """Shows every step on a running cluster and checks it. Raises StepFailed."""
    console.rule("1. a streamed answer")
    story = _ask(client, console, STORY, max_new_tokens=200)
    _check(len(story.text) > 40, "the story is empty")

    console.rule("2. a long prompt, then the same beginning with another ending")
    cold = _ask(client, console, f"{NOTES}{QUESTIONS[0]}")
    _check("4271" in cold.text, f"expected the code 4271 in {cold.text!r}")
    _wait_for_ownership(client, cold)  # else the router may not know the pages yet
    warm = _ask(client, console, f"{NOTES}{QUESTIONS[1]}")
    _check("Bramo" in warm.text, f"expected the name Bramo in {warm.text!r}")
    before, after = cold.meta_info, warm.meta_info
    console.print(
        f"  cached tokens   {before.cached_tokens:>6} → {after.cached_tokens} "
        f"of {after.prompt_tokens}\n"
        f"  time to first   {(before.ttft or 0.0) * 1e3:>6.1f} → {(after.ttft or 0.0) * 1e3:.1f} ms"
    )
    _check(before.prefill_node is not None, "the cold prompt was not prefilled remotely")
    _check(before.transferred_pages > 0, "no page moved for the cold prompt")
    _check(after.cached_tokens > 0, "the second prompt hit no cache")

    console.rule("3. the caches")
    answered = time.monotonic()
    _await(lambda: _all_rest(client, answered), "the end of all work")
    show_stats(client.cache_stats(), console)
    console.print("[green]every step held[/green]")


def _ask(client: Client, console: Console, text: str, max_new_tokens: int = 32) -> Generated:
    """Streams an answer to the terminal, with what the cluster did for it, and returns it.
    Raises StepFailed if the answer has no end."""
    shown_text = text if len(text) < 90 else f"{text[:40]}…{text[-45:]}"
    console.print(f"[cyan]> {shown_text}[/cyan]")
    prompt = f"<|user|>{text}<|end|><|assistant|>"
    update = Generated(text="")
    shown = 0
    for update in client.stream(prompt, temperature=0.0, max_new_tokens=max_new_tokens):
        console.out(update.text[shown:], end="", highlight=False)
        shown = len(update.text)
    console.print()
    meta = update.meta_info
    if meta.finish_reason is None:
        raise StepFailed("the answer did not end")
    console.print(
        f"[dim]  prefill on {meta.prefill_node or 'the decode node'}, decode on "
        f"{meta.decode_node}, {meta.transferred_pages} pages moved, "
        f"{meta.prompt_tokens} prompt tokens, {meta.cached_tokens} cached\n"
        f"  why: {meta.route_reason}[/dim]"
    )
    return update


def _wait_for_ownership(client: Client, answer: Generated) -> None:
    """Waits until the coordinator knows that the prompt's pages are on the node that computed it.
    Raises StepFailed."""
    name = answer.meta_info.prefill_node or answer.meta_info.decode_node
    page_size = next(n for n in client.nodes() if n["name"] == name)["layout"]["page_size"]
    num_pages = answer.meta_info.prompt_tokens // page_size

    def is_known() -> bool:
        return client.cache_stats()["nodes"][name]["owned_pages"] >= num_pages

    _await(is_known, "page ownership")


def _all_rest(client: Client, since: float) -> bool:
    """Returns True if every node has said, after the time `since`, that it holds no page."""
    nodes = client.nodes()
    elapsed_s = time.monotonic() - since
    return all(
        node["last_heartbeat_s_ago"] < elapsed_s and node["load"]["held_pages"] == 0
        for node in nodes
    )


def _await(condition: Callable[[], bool], what: str) -> None:
    """Polls until `condition` holds. Raises StepFailed, which names `what`, if it never does."""
    deadline = time.monotonic() + STATS_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise StepFailed(f"{what} did not arrive within {STATS_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _check(holds: bool, sentence: str) -> None:
    """Raises StepFailed with `sentence` unless the condition holds."""
    if not holds:
        raise StepFailed(f"the demo failed: {sentence}")


def _keep_serving(cluster: LocalCluster, console: Console) -> None:
    """Prints a request to try, and returns when the cluster is interrupted."""
    console.rule("serving")
    console.print(f"The cluster goes on serving at {cluster.url}; Ctrl-C stops it. Try:\n")
    console.out(
        f"curl -N {cluster.url}/generate -d '"
        '{"text": "<|user|>My cat is called Zorin. What is my cat called?<|end|><|assistant|>", '
        '"sampling_params": {"temperature": 0}, "stream": true}\'\n',
        highlight=False,
    )
    watch(cluster)
