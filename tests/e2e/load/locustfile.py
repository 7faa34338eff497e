"""A user of locust who asks for answers, whole and streamed, in both dialects."""

from __future__ import annotations

from locust import HttpUser, constant, task

PROMPT = "My dog is called Bramo. What is my dog called?"


class Chatter(HttpUser):
    wait_time = constant(0)

    @task
    def ask(self) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
        with self.client.post("/v1/chat/completions", json=body, catch_response=True) as reply:
            if reply.status_code == 200 and not reply.json()["choices"][0]["message"]["content"]:
                reply.failure("no text")

    @task
    def stream(self) -> None:
        body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 8}, "stream": True}
        with self.client.post("/generate", json=body, stream=True, catch_response=True) as reply:
            if reply.status_code == 200:
                *_, last = filter(None, reply.iter_lines())
                if last != b"data: [DONE]":
                    reply.failure(f"the stream ended with {last!r}")
