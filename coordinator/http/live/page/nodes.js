// The table of nodes, and what an operator may do to one.

import { NONE, ago, byId, cellButton, count, element, milliseconds, seconds, setText, share, table } from "./elements.js";
import { act } from "./dialogs.js";

const isGone = (node) => node.state === "gone";
const unlessGone = (text) => (node) => (isGone(node) ? "" : text(node));
const ROW_CLASSES = { gone: "bad", silent: "bad", "held up": "warn", draining: "warn" };

const show = table(byId("nodes"), [
  { title: "node", text: (node) => node.name },
  { title: "role", extra: true, text: (node) => node.role ?? "" },
  { title: "state", show: showState },
  { title: "queue", numeric: true, text: unlessGone((node) => seconds(node.queue_s)) },
  { title: "running", numeric: true, text: unlessGone((node) => count(node.running)) },
  { title: "waiting", numeric: true, extra: true, text: unlessGone((node) => count(node.waiting)) },
  { title: "pages", className: "pages", show: showPages },
  { title: "hits", numeric: true, text: unlessGone((node) => share(node.hit_ratio)) },
  { title: "step", numeric: true, extra: true, text: unlessGone((node) => (node.step_ms ? milliseconds(node.step_ms) : NONE)) },
  { title: "prefill tok/s", numeric: true, extra: true, text: unlessGone((node) => (node.prefill_tokens_per_s ? count(Math.round(node.prefill_tokens_per_s)) : NONE)) },
  { title: "preempted", numeric: true, extra: true, text: unlessGone((node) => count(node.preemptions)) },
  { title: "heartbeat", numeric: true, text: (node) => (isGone(node) ? `${ago(node.heartbeat_s_ago)} ago` : ago(node.heartbeat_s_ago)) },
  { title: "", className: "actions", show: showActions },
], (node) => node.name, { empty: "no node has joined", rowClass: (node) => ROW_CLASSES[node.state] ?? "" });

export function showNodes(nodes) {
  show(nodes);
  const live = nodes.filter((node) => !isGone(node));
  const pages = live.reduce((sum, node) => sum + node.pages, 0);
  setText(byId("nodes-note"), `${live.length} live · ${count(pages)} pages`);
}

function showState(cell, node) {
  setText(cell, node.state);
  cell.className = "state";
  cell.title = node.why || node.device;
}

function showPages(cell, node) {
  if (isGone(node)) {
    cell.replaceChildren(element("span", { className: "muted" }, node.why));
    return;
  }
  let bar = cell.querySelector(".stacked");
  if (!bar) {
    const parts = ["held", "cached"].map((name) => element("i", { className: name }));
    bar = element("div", { className: "stacked thin", role: "img" }, ...parts, element("u"));
    cell.replaceChildren(element("div", { className: "with-number" }, bar, element("span")));
  }
  const used = [node.held_pages, node.cached_pages];
  const free = node.pages - node.held_pages - node.cached_pages;
  used.forEach((number, i) => { bar.children[i].style.width = `${(number / node.pages) * 100}%`; });
  setText(bar.nextSibling, share(1 - free / node.pages));
  // The mark shows how much of the rest is already promised to answers that will grow.
  bar.lastChild.style.width = `${(Math.min(node.promised_pages, node.pages) / node.pages) * 100}%`;
  const text = `${count(node.held_pages)} held, ${count(node.cached_pages)} cached, ${count(free)} free of ${count(node.pages)}; ${count(node.promised_pages)} promised, ${count(node.evictions)} evicted so far`;
  bar.title = text;
  bar.setAttribute("aria-label", text);
}

function showActions(cell, node) {
  const live = !isGone(node);
  cellButton(cell, "Drain", node, drain).hidden = !live || node.is_draining;
  cellButton(cell, "Undrain", node, undrain).hidden = !live || !node.is_draining;
  cellButton(cell, "Flush", node, flush).hidden = !live;
  for (const button of cell.children) button.setAttribute("aria-label", `${button.dataset.label} ${node.name}`);
}

const pathOf = (node, verb) => `nodes/${encodeURIComponent(node.name)}/${verb}`;

const drain = (node) => act({
  title: `Drain ${node.name}?`,
  text: `It gets no new requests; the ${node.running} that it has run to their end, and its pages can still be fetched. Until Undrain, or until it restarts.`,
  yes: "Drain",
  path: pathOf(node, "drain"),
  told: (answer) => `${answer.name} drains; ${answer.unfinished_requests} requests of this coordinator are unfinished there.`,
});

const undrain = (node) => act({
  title: `Undrain ${node.name}?`,
  text: "It gets new requests again.",
  yes: "Undrain",
  path: pathOf(node, "undrain"),
  told: (answer) => `${answer.name} gets requests again.`,
});

const flush = (node) => act({
  title: `Flush the cache of ${node.name}?`,
  text: `Its ${count(node.cached_pages)} cached pages are forgotten. Prompts that find them now are computed anew, and slower for a while.`,
  yes: "Flush",
  path: "cache/flush",
  body: { node: node.name },
  told: (answer) => `${node.name} has forgotten ${count(answer.pages[node.name] ?? 0)} pages.`,
});
