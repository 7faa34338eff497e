// The router's decisions, and why a prompt would go where.

import { NONE, ago, byId, count, element, milliseconds, requestLink, setText, table } from "./elements.js";
import { ask } from "./connection.js";
import { showTimeline } from "./dialogs.js";

const OFF_BY = 2;
/** A forecast that is off by this factor, and by more than OFF_MS, is marked. */
const OFF_MS = 20;

const show = table(byId("decisions"), [
  { title: "ago", numeric: true, text: (one) => ago(one.s_ago) },
  { title: "request", show: (cell, one) => requestLink(cell, one, showTimeline) },
  { title: "to", text: (one) => [one.prefill, one.decode].filter(Boolean).join(" → ") },
  { title: "cached / prompt", numeric: true, text: (one) => `${count(one.cached_tokens)} / ${count(one.prompt_tokens)}` },
  { title: "forecast", numeric: true, text: (one) => milliseconds(one.forecast_ms) },
  { title: "actual", numeric: true, text: (one) => milliseconds(one.actual_ms) },
  { title: "off by", numeric: true, show: showError },
  { title: "why", className: "clipped", show: (cell, one) => { setText(cell, one.reason); cell.title = `${one.reason}; runner-up ${one.runner_up}`; } },
  { title: "runner-up", className: "clipped", show: (cell, one) => { setText(cell, one.runner_up); cell.title = one.runner_up; } },
], (one) => one.request_id, { empty: "no request was routed yet" });

export const showDecisions = show;

function showError(cell, one) {
  if (one.actual_ms === null || one.forecast_ms === null) {
    setText(cell, NONE);
    cell.className = "number";
    return;
  }
  const error = one.actual_ms - one.forecast_ms;
  const ratio = Math.max(one.actual_ms, 0.1) / Math.max(one.forecast_ms, 0.1);
  const isOff = Math.abs(error) > OFF_MS && (ratio > OFF_BY || ratio < 1 / OFF_BY);
  setText(cell, `${error < 0 ? "−" : "+"}${milliseconds(Math.abs(error))}`);
  cell.className = `number ${isOff ? "off" : ""}`;
}

byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = byId("explanation");
  try {
    const salt = byId("salt").value;
    const body = { text: byId("prompt").value, ...(salt ? { cache_salt: salt } : {}) };
    place.replaceChildren(...explained(await ask("POST", "route/explain", body)));
  } catch (error) {
    place.replaceChildren(element("p", { className: "bad" }, error.message));
  }
});

function explained(answer) {
  return [path(answer), element("p", {}, `${answer.reason}.`),
    element("p", { className: "muted" }, `Runner-up: ${answer.runner_up}.`), candidates(answer)];
}

/** How far the prompt is cached, and the words at which it leaves that. */
function path(answer) {
  const cached = answer.cached_path;
  const bar = element("div", { className: "stacked thin" }, element("i", { className: "cached" }));
  bar.firstChild.style.width = `${(cached.tokens / answer.prompt_tokens) * 100}%`;
  const owners = cached.owners.length ? ` on ${cached.owners.join(", ")}` : "";
  const parts = [element("p", {}, `${count(cached.tokens)} of ${count(answer.prompt_tokens)} tokens are cached${owners}. `)];
  if (cached.leaves_at_token === null) {
    parts[0].append("The prompt does not leave the cached path.");
  } else if (cached.words_behind === null) {
    parts[0].append(`It leaves the cached path at token ${cached.leaves_at_token}; the words there are shown with --show-prompt-words, and never a tenant's.`);
  } else {
    parts[0].append(`It leaves the cached path at token ${cached.leaves_at_token}:`);
    parts.push(element("p", { className: "leaving" }, cached.words_before, element("mark", { title: "from here on nothing is cached" }, cached.words_behind)));
  }
  return element("div", {}, bar, ...parts);
}

const TASKS = { prefill: "computes", decode: "answers", both: "both" };
const TERMS = ["queue_ms", "fetch_ms", "compute_ms", "transfer_ms", "wait_ms", "evict_ms", "delay_ms", "first_token_ms", "score_ms"];

function candidates(answer) {
  const heads = ["node", "task", "owned pages", "fetches from", ...TERMS.map((term) => term.replace("_ms", "").replace("_", " "))];
  const rows = Object.entries(answer.candidates).flatMap(([task, list]) => list.map((one) =>
    element("tr", { className: one.chosen ? "chosen" : "" },
      element("td", {}, one.chosen ? `✓ ${one.node}` : one.node),
      element("td", {}, TASKS[task]),
      element("td", { className: "number" }, count(one.owned_pages)),
      element("td", {}, one.fetch_from ?? ""),
      ...TERMS.map((term) => element("td", { className: "number" }, one[term] ? milliseconds(one[term]) : "0")))));
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head, i) => element("th", { scope: "col", className: i > 3 || i === 2 ? "number" : "" }, head)))),
    element("tbody", {}, ...rows)));
}
