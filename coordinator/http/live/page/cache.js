// What the caches have saved, and the prefixes that are found most.

import { NONE, ago, byId, count, element, seconds, setText, share, table } from "./elements.js";
import { act } from "./dialogs.js";

const showPrefixes = table(byId("prefixes"), [
  { title: "hits", numeric: true, text: (prefix) => count(prefix.hits) },
  { title: "tokens", numeric: true, text: (prefix) => count(prefix.tokens) },
  { title: "last", numeric: true, text: (prefix) => `${ago(prefix.last_hit_s_ago)} ago` },
  { title: "owners", text: (prefix) => prefix.owners.join(" ") || NONE },
  { title: "begins", className: "clipped", show: showBegin },
], (prefix) => prefix.page_hash, { empty: "no prefix was found twice yet" });

const facts = new Map();

export function showCache(cache) {
  const saved = cache.saved_s === null ? NONE : seconds(cache.saved_s);
  const asked = cache.reused_tokens + cache.computed_tokens;
  setFact("tokens saved", count(cache.reused_tokens), `${share(asked ? cache.reused_tokens / asked : null)} of all prompt tokens of live nodes`);
  setFact("device time saved", saved, "reused tokens at the measured speed");
  setFact("hits, 5 minutes", share(total(cache)), `here ${share(cache.local_share)} · fetched ${share(cache.fetched_share)}`);
  setFact("unique pages", count(cache.unique_pages), `${count(cache.duplicate_pages)} duplicates`);
  setFact("evicted", count(cache.evicted_pages), "pages since the nodes' start");
  setFact("early divergences", count(cache.early_divergences), "left a cached path before token 256");
  showPrefixes(cache.hottest);
}

const total = (cache) => (cache.local_share === null ? null : cache.local_share + cache.fetched_share);

function setFact(name, value, note) {
  if (!facts.has(name)) {
    const shown = { value: element("dd"), note: element("dd", { className: "muted" }) };
    byId("cache").append(element("div", {}, element("dt", {}, name), shown.value, shown.note));
    facts.set(name, shown);
  }
  setText(facts.get(name).value, value);
  setText(facts.get(name).note, note);
}

function showBegin(cell, prefix) {
  setText(cell, prefix.words ?? (prefix.is_salted ? "a tenant's" : prefix.page_hash.slice(0, 12)));
  cell.title = prefix.words ?? `page ${prefix.page_hash}; words are shown with --show-prompt-words, and never a tenant's`;
}

byId("flush-all").addEventListener("click", () => act({
  title: "Flush the caches of all nodes?",
  text: "All pages that no request holds are forgotten. Every prompt is computed anew until the caches are warm again.",
  yes: "Flush all",
  path: "cache/flush",
  body: {},
  told: (answer) => {
    const pages = Object.values(answer.pages).reduce((sum, number) => sum + number, 0);
    const silent = answer.unanswered.length ? `; no answer from ${answer.unanswered.join(", ")}` : "";
    return `${count(pages)} pages are forgotten${silent}.`;
  },
}));
