// The status strip, red first, and the waterfall.

import { NONE, byId, count, element, milliseconds, setText, share } from "./elements.js";

const ORDER = { bad: 0, warn: 1, ok: 2 };
const FORMATS = {
  per_s: (value) => `${value.toFixed(value < 10 ? 1 : 0)}/s`,
  ms: milliseconds,
  share,
  count,
  state: String,
};
const tiles = new Map();

export function showTiles(shown) {
  const strip = byId("strip");
  const sorted = [...shown].sort((a, b) => ORDER[a.level] - ORDER[b.level]);
  const gone = new Set(tiles.keys());
  sorted.forEach((tile, position) => {
    gone.delete(tile.name);
    if (!tiles.has(tile.name)) tiles.set(tile.name, newTile(tile.name));
    const { whole, value, note } = tiles.get(tile.name);
    whole.className = `tile ${tile.level}`;
    setText(value, tile.value === null ? NONE : FORMATS[tile.unit](tile.value));
    setText(note, tile.note);
    if (strip.children[position] !== whole) strip.insertBefore(whole, strip.children[position] ?? null);
  });
  for (const name of gone) {
    tiles.get(name).whole.remove();
    tiles.delete(name);
  }
}

function newTile(name) {
  const value = element("strong");
  const note = element("small");
  return { whole: element("div", {}, element("span", {}, name), value, note), value, note };
}

const MEANINGS = {
  intake: "reading, tokenizing, grammars",
  wait: "no node was free",
  prefill: "computing the prompt, and the way there",
  transfer: "pages still coming, nothing left to compute",
  "first step": "the decode node's first step",
};
let bars = null;

export function showWaterfall(waterfall) {
  bars ??= newWaterfall(waterfall.stages);
  const { requests } = waterfall;
  setText(byId("waterfall-note"), requests ? `${count(requests)} requests of the last minute` : "no request in the last minute");
  const totals = ["typical_ms", "slowest_ms"].map((key) =>
    waterfall.stages.reduce((sum, stage) => sum + stage[key], 0));
  const longest = Math.max(...totals, 1e-9);
  ["typical_ms", "slowest_ms"].forEach((key, row) => {
    setText(bars.totals[row], requests ? milliseconds(totals[row]) : NONE);
    waterfall.stages.forEach((stage, i) => {
      bars.parts[row][i].style.width = `${(stage[key] / longest) * 100}%`;
      bars.parts[row][i].title = `${stage.name} ${milliseconds(stage[key])}`;
    });
  });
  waterfall.stages.forEach((stage, i) => {
    const shown = [stage.typical_ms, stage.slowest_ms, stage.p50_ms, stage.p99_ms];
    shown.forEach((value, column) => setText(bars.cells[i][column], requests ? milliseconds(value) : NONE));
  });
}

function newWaterfall(stages) {
  const totals = [element("b"), element("b")];
  const parts = [0, 1].map(() => stages.map((_, i) => element("i", { className: `stage-${i}` })));
  const cells = stages.map(() => [0, 1, 2, 3].map(() => element("td", { className: "number" })));
  const rows = ["typical", "slowest 1 %"].map((label, row) =>
    element("div", { className: "bar-row" },
      element("span", {}, label), element("div", { className: "stacked" }, ...parts[row]), totals[row]));
  const legend = stages.map((stage, i) => element("tr", {},
    element("th", { scope: "row" }, element("i", { className: `swatch stage-${i}` }), stage.name),
    ...cells[i], element("td", { className: "muted" }, MEANINGS[stage.name] ?? "")));
  const heads = ["stage", "typical", "slowest", "p50", "p99", ""].map((title, i) =>
    element("th", { scope: "col", className: i && title ? "number" : "" }, title));
  byId("waterfall").replaceChildren(
    element("div", { className: "bars" }, ...rows),
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...legend)));
  return { totals, parts, cells };
}
