"""The live page in a real browser, on a cluster under load, of which a node is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from infra.models import EMBEDDED
from tests.support.browsing.chromium import Browser, browser, missing_browser
from tests.support.processes.clusters import Cluster, start_cluster

TOKEN = "let-me-in-0417"
STORY = "<|user|>Tell me a short story about <b>Lina</b> and her red boat, number "
SLOWLY = 1500
"""Tokens of an answer that is still under way when it is aborted."""

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(bool(missing_browser()), reason=missing_browser() or "a browser is here"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = {"admin_token": TOKEN, "show_prompt_words": "true"}
    one = start_cluster(tmp_path_factory, EMBEDDED, 2, 2, flags)
    yield one
    one.local.stop()


@contextmanager
def under_load(cluster: Cluster) -> Iterator[None]:
    """Clients that ask for stories, of which each one has many readers."""
    enough = threading.Event()

    def client(number: int) -> int:
        done = 0
        while not enough.is_set():
            cluster.generate(f"{STORY}{done % 5}.<|end|>", max_new_tokens=12)
            done += 1
        return done

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, number) for number in range(3)]
        try:
            yield
        finally:
            enough.set()
        assert all(one.result() > 0 for one in clients)


@pytest.fixture(scope="module")
def page(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page, opened with the token, while requests come and go."""
    with under_load(cluster), browser(tmp_path_factory.mktemp("profile")) as one:
        one.resize(1440, 1000)
        one.open(f"{cluster.local.url}/admin/")
        one.wait_for(lambda: is_shown(one, "token-form"), "the question for the token")
        assert not is_shown(one, "panels")
        one.type("#token", "wrong")
        one.click("#token-form button")
        one.wait_for(lambda: "refuses" in one.text("#token-problem"), "the refusal")
        one.type("#token", TOKEN)
        one.click("#token-form button")
        one.wait_for(lambda: len(states(one)) == 4, "all nodes")
        yield one


def is_shown(page: Browser, name: str) -> bool:
    return not page.run("return document.getElementById(arguments[0]).hidden", name)


def states(page: Browser) -> dict[str, str]:
    """What the table of nodes shows, by name."""
    rows = page.run(
        "return [...document.querySelectorAll('#nodes tbody tr')].map("
        "row => [row.dataset.key, row.querySelector('.state').textContent])"
    )
    return dict(rows)


def confirm(page: Browser) -> None:
    page.wait_for(lambda: page.run("return document.getElementById('confirm').open"), "a question")
    page.click("#confirm-yes")


def test_the_panels_show_the_load(page: Browser) -> None:
    page.wait_for(lambda: page.text("#decisions tbody tr"), "a decision")
    page.wait_for(lambda: "requests of the last minute" in page.text("#waterfall-note"), "times")
    assert set(states(page).values()) == {"ready"}
    assert page.text("#strip .tile strong").endswith("/s"), "all is well: requests come first"
    page.wait_for(lambda: page.text("#prefixes tbody tr"), "a prefix")
    assert "about <b>Lina" in page.text("#prefixes"), "markup in a prompt is text"
    assert page.run("return document.querySelectorAll('#prefixes b').length") == 0


def test_a_node_is_drained_and_gets_requests_again(page: Browser, cluster: Cluster) -> None:
    page.click("tr[data-key=p1] button[data-label=Drain]")
    confirm(page)
    page.wait_for(lambda: states(page)["p1"] == "draining", "the drained row")
    assert cluster.nodes()["p1"]["draining"]
    page.click("tr[data-key=p1] button[data-label=Undrain]")
    confirm(page)
    page.wait_for(lambda: states(page)["p1"] == "ready", "the row as before")
    assert "p1 drains" in page.text("#events") and "p1 gets requests again" in page.text("#events")


def test_a_question_that_is_not_confirmed_changes_nothing(page: Browser, cluster: Cluster) -> None:
    page.click("tr[data-key=p0] button[data-label=Drain]")
    page.wait_for(lambda: page.run("return document.getElementById('confirm').open"), "a question")
    page.click("#confirm [value=no]")
    page.wait_for(lambda: not page.run("return document.getElementById('confirm').open"), "no")
    assert not cluster.nodes()["p0"]["draining"]


def test_a_prompt_is_explained_with_the_words_where_it_leaves_the_cache(page: Browser) -> None:
    page.type("#prompt", f"{STORY}0, but with a storm, and with a whale that nobody expected.")
    page.click("#explain button")
    page.wait_for(lambda: page.text("#explanation mark"), "the words behind the cached path")
    assert "leaves the cached path at token" in page.text("#explanation")
    assert page.run("return document.querySelectorAll('#explanation tr.chosen').length") >= 1


def test_a_request_is_aborted_and_its_timeline_is_shown(page: Browser, cluster: Cluster) -> None:
    body = {"text": STORY, "rid": "slow-one"}
    sampling = {"max_new_tokens": SLOWLY, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            cluster.http.post, "/generate", json=body | {"sampling_params": sampling}
        )
        row = "#flight tr:has([title=slow-one])"
        page.wait_for(lambda: page.text(row), "the request in flight")
        page.run(f"document.querySelector('{row} .link').click()")
        page.wait_for(lambda: "decode" in page.text("#timeline-body"), "the timeline")
        assert "slow-one" in page.text("#timeline-title")
        page.click("#timeline menu button")
        page.run(f"document.querySelector('{row} button[data-label=Abort]').click()")
        confirm(page)
        meta = asked.result().json()["meta_info"]
    assert meta["finish_reason"]["type"] == "abort" and meta["completion_tokens"] < SLOWLY
    page.wait_for(lambda: not page.text(row), "its end")


def test_an_audit_is_run(page: Browser) -> None:
    page.click("#run-audit")
    page.wait_for(lambda: "pages of 4 nodes" in page.text("#audit"), "a clean audit")


def test_a_killed_node_turns_and_is_in_the_log_and_comes_back(
    page: Browser, cluster: Cluster
) -> None:
    cluster.kill("d1")
    page.wait_for(lambda: states(page)["d1"] == "gone", "the row of the killed node")
    assert page.run("return document.querySelector('tr[data-key=d1]').className") == "bad"
    assert not page.run("return document.querySelector('tr[data-key=d1] button').offsetParent")
    assert "decode node d1 has died" in page.text("#events")
    assert "d1 gone" in page.text("#strip")
    first = page.run("return document.querySelector('#strip .tile').className")
    assert first == "tile warn", "what is not well comes first"
    cluster.restart_killed_nodes()
    page.wait_for(lambda: states(page)["d1"] == "ready", "the new process")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    for width in (1440, 700):
        page.resize(width, 900)
        wide = "return document.documentElement.scrollWidth <= innerWidth"
        page.wait_for(lambda: page.run(wide), f"a page of {width} pixels")  # noqa: B023
    back = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(20, 23, 26)") == (scheme == "dark")


def test_the_console_has_no_errors_and_nothing_came_from_elsewhere(
    page: Browser, cluster: Cluster
) -> None:
    """Chromium's start page had its own requests, and each refused token is an error of the
    console by itself."""
    entries = [one for one in page.log("browser") if one["level"] in ("SEVERE", "WARNING")]
    others = [one["message"] for one in entries if "/admin/events" not in one["message"]]
    assert others == [] and all("401" in one["message"] for one in entries) and len(entries) == 2
    events = [json.loads(one["message"])["message"] for one in page.log("performance")]
    sent = [one["params"] for one in events if one["method"] == "Network.requestWillBeSent"]
    urls = {one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome")}
    assert len(urls) > 15
    assert {urlsplit(url).netloc for url in urls} == {urlsplit(cluster.local.url).netloc}
