// What happened to the cluster, and the audit.

import { byId, clock, count, element, table } from "./elements.js";
import { ask } from "./connection.js";

const LEVELS = { died: "bad", lease_lost: "bad", redis_lost: "bad", paused: "warn", replaced: "warn", drained: "warn", index_reloaded: "warn" };

const show = table(byId("events"), [
  { title: "time", className: "number", text: (event) => clock(event.unix_s) },
  { title: "what", text: (event) => event.kind.replace("_", " ") },
  { title: "", text: (event) => event.text },
], (event) => event.number, { empty: "nothing has happened since the coordinator's start", rowClass: (event) => LEVELS[event.kind] ?? "" });

export const showEvents = show;

const DIFFERENCES = ["missing_in_redis", "extra_in_redis", "missing_in_mirror", "extra_in_mirror"];

byId("run-audit").addEventListener("click", async () => {
  const button = byId("run-audit");
  button.disabled = true;
  try {
    const answer = await ask("POST", "cache/audit?repair=false");
    byId("audit").replaceChildren(...told(answer));
  } catch (error) {
    byId("audit").replaceChildren(element("p", { className: "bad" }, error.message));
  } finally {
    button.disabled = false;
  }
});

function told(answer) {
  const nodes = Object.entries(answer.nodes);
  const pages = nodes.reduce((sum, [, node]) => sum + node.pages, 0);
  const time = clock(Date.now() / 1000);
  if (answer.clean) return [element("p", {}, `Clean at ${time}: ${count(pages)} pages of ${nodes.length} nodes are what Redis and this mirror say.`)];
  const rows = nodes.filter(([, node]) => !node.clean).map(([name, node]) => {
    const differences = DIFFERENCES.filter((key) => node[key]).map((key) => `${node[key]} ${key.replaceAll("_", " ")}`);
    return element("li", {}, `${name}: ${node.problem || differences.join(", ")}`);
  });
  return [element("p", { className: "bad" }, `It differs at ${time}:`), element("ul", {}, ...rows),
    element("p", { className: "muted" }, "`kvrelay audit` repairs.")];
}
