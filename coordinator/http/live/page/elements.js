// Elements of the page, made without markup: whatever comes from outside is text and stays text.

/** Makes an element. Properties whose names are not the DOM's are attributes; children may be text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only if it differs, so that selections and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A table whose rows stay the same elements from update to update: focus and selections are kept.
 *
 * A column has a `title` and either `text(item)` or `show(cell, item)`, which is called at each
 * update. It may be `numeric`, or `extra`: left out where there is little room. `keyOf(item)` tells rows apart; `rowClass(item)` marks them.
 */
export function table(place, columns, keyOf, { empty = "none", rowClass = () => "" } = {}) {
  const classOf = (column) =>
    [column.numeric && "number", column.extra && "extra", column.className].filter(Boolean).join(" ");
  const heads = columns.map((column) =>
    element("th", { scope: "col", className: classOf(column) }, column.title));
  const body = element("tbody");
  const nothing = element("p", { className: "muted" }, empty);
  const whole = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  place.replaceChildren(whole, nothing);
  const rows = new Map();

  function newRow() {
    const cells = columns.map((column) => element("td", { className: classOf(column) }));
    return { row: element("tr", {}, ...cells), cells };
  }

  return function update(items) {
    whole.hidden = !items.length;
    nothing.hidden = items.length > 0;
    const seen = new Set();
    items.forEach((item, position) => {
      const key = keyOf(item);
      seen.add(key);
      if (!rows.has(key)) rows.set(key, newRow());
      const { row, cells } = rows.get(key);
      row.className = rowClass(item);
      row.dataset.key = key;
      columns.forEach((column, i) => {
        if (column.show) column.show(cells[i], item);
        else setText(cells[i], column.text(item));
      });
      if (body.children[position] !== row) body.insertBefore(row, body.children[position] ?? null);
    });
    for (const [key, { row }] of rows) {
      if (seen.has(key)) continue;
      row.remove();
      rows.delete(key);
    }
  };
}

/** Makes a cell's button once; a press calls `act` with the newest item of its row. */
export function cellButton(cell, label, item, act) {
  let button = [...cell.children].find((child) => child.dataset.label === label);
  if (!button) {
    button = element("button", { type: "button", className: "minor" }, label);
    button.dataset.label = label;
    button.addEventListener("click", () => act(button.item));
    cell.append(button);
  }
  button.item = item;
  return button;
}

/** A button that looks like a link, with the client's name of a request. */
export function requestLink(cell, request, open) {
  const button = cellButton(cell, "", request, open);
  const { rid } = request;
  button.className = "link";
  button.title = rid;
  setText(button, rid.length > 14 ? `${rid.slice(0, 13)}…` : rid);
}

export const NONE = "–";

export function milliseconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0 ms";
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ms`;
}

export const seconds = (value) => (value === null ? NONE : milliseconds(value * 1000));

/** How long ago something was, in the unit that one would say it in. */
export function ago(value) {
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(1)}G`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 10_000) return `${(value / 1e3).toFixed(0)}k`;
  return value.toLocaleString("en");
}

export const share = (value) => (value === null ? NONE : `${(value * 100).toFixed(value && value < 0.1 ? 1 : 0)} %`);

export const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
