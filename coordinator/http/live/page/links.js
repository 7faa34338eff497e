// The matrix of links: rows send, columns receive.

import { NONE, byId, count, element, share } from "./elements.js";

const EXPOSED_WARN = 0.2;
let shape = "";

export function showLinks(links, nodes) {
  const place = byId("links");
  if (!links.length) {
    shape = "";
    place.replaceChildren(element("p", { className: "muted" }, "no node has sent pages to another"));
    return;
  }
  const live = new Set(nodes.filter((node) => node.state !== "gone").map((node) => node.name));
  const senders = names(links, "sender", nodes, "prefill", live);
  const receivers = names(links, "receiver", nodes, "decode", live);
  const newShape = JSON.stringify([senders, receivers]);
  if (newShape !== shape) {
    shape = newShape;
    place.replaceChildren(matrix(senders, receivers));
  }
  const found = new Map(links.map((link) => [`${link.sender}\n${link.receiver}`, link]));
  for (const cell of place.querySelectorAll("td")) showLink(cell, found.get(cell.dataset.pair));
}

/** Those that have links, and those of the role that should: a silent pair stands out. */
function names(links, end, nodes, role, live) {
  const ofRole = nodes.filter((node) => node.role === role && live.has(node.name)).map((node) => node.name);
  const linked = links.map((link) => link[end]).filter((name) => live.has(name));
  return [...new Set([...ofRole, ...linked])].sort();
}

function matrix(senders, receivers) {
  const heads = receivers.map((name) => element("th", { scope: "col", className: "number" }, name));
  const rows = senders.map((sender) => {
    const cells = receivers.map((receiver) => {
      const cell = element("td", { className: "link-cell number" });
      cell.dataset.pair = `${sender}\n${receiver}`;
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row" }, sender), ...cells);
  });
  return element("table", { className: "matrix" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "from ↓ to →"), ...heads)),
    element("tbody", {}, ...rows));
}

function showLink(cell, link) {
  const [sender, receiver] = cell.dataset.pair.split("\n");
  if (!link) {
    cell.className = "link-cell number silent";
    cell.replaceChildren(sender === receiver ? "" : NONE);
    cell.title = sender === receiver ? "" : `${sender} has never sent to ${receiver}`;
    return;
  }
  const speed = link.gigabytes_per_s === null ? NONE : `${link.gigabytes_per_s.toFixed(link.gigabytes_per_s < 10 ? 2 : 0)} GB/s`;
  const failures = link.recent_failures || (link.is_open ? 0 : link.failures_total);
  const isExposed = link.moves && link.exposed_share > EXPOSED_WARN;
  cell.className = `link-cell number ${failures ? "bad" : isExposed ? "warn" : ""} ${link.moves ? "" : "still"}`;
  const details = [link.transport || "no transport"];
  if (link.exposed_share !== null) details.push(`waited ${share(link.exposed_share)}`);
  if (link.failures_total) details.push(`${link.failures_total} failed`);
  if (!link.is_open) details.push("closed");
  cell.replaceChildren(element("b", {}, speed), element("small", {}, details.join(" · ")));
  cell.title = `${sender} → ${receiver}: ${count(link.bytes_total)}B in all over ${link.transport || "nothing yet"}; ${link.moves ? "moved pages in the last minute" : "quiet"}`;
}
