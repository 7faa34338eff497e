// Requests in flight, with a way to end them, and requests that failed.

import { ago, byId, cellButton, count, requestLink, setText, table } from "./elements.js";
import { act, showTimeline } from "./dialogs.js";

const nodesOf = (one) => [one.prefill, one.decode].filter(Boolean).join(" → ");

const showFlight = table(byId("flight"), [
  { title: "age", numeric: true, text: (one) => ago(one.age_s) },
  { title: "request", show: (cell, one) => requestLink(cell, one, showTimeline) },
  { title: "stage", text: (one) => one.state },
  { title: "nodes", text: nodesOf },
  { title: "tokens", numeric: true, text: (one) => `${count(one.prompt_tokens)} + ${count(one.completion_tokens)}` },
  { title: "attempts", numeric: true, text: (one) => count(one.attempts) },
  { title: "", className: "actions", show: (cell, one) => cellButton(cell, "Abort", one, abort).setAttribute("aria-label", `Abort ${one.rid}`) },
], (one) => one.request_id, { empty: "nothing is in flight", rowClass: (one) => (one.attempts > 1 ? "warn" : "") });

const showFailed = table(byId("failed"), [
  { title: "ago", numeric: true, text: (one) => ago(one.age_s) },
  { title: "request", show: (cell, one) => requestLink(cell, one, showTimeline) },
  { title: "kind", text: (one) => one.state },
  { title: "nodes", text: nodesOf },
  { title: "attempts", numeric: true, text: (one) => count(one.attempts) },
  { title: "error", className: "clipped", show: (cell, one) => { setText(cell, one.error); cell.title = one.error; } },
], (one) => one.request_id, { empty: "no request has failed" });

export function showRequests(snapshot) {
  showFlight(snapshot.in_flight);
  showFailed(snapshot.failed);
  const hidden = snapshot.num_in_flight - snapshot.in_flight.length;
  setText(byId("flight-note"), hidden > 0 ? `the oldest ${snapshot.in_flight.length} of ${count(snapshot.num_in_flight)}` : "");
}

const abort = (one) => act({
  title: `Abort ${one.rid}?`,
  text: "Its client gets what was answered so far, with finish_reason abort.",
  yes: "Abort",
  path: "../abort_request",
  body: { rid: one.rid },
  told: () => `${one.rid} is aborted.`,
});
