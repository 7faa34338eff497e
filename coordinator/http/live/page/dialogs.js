// Questions before something is done, and what came of it.

import { byId, element, milliseconds, setText } from "./elements.js";
import { ask } from "./connection.js";

const NOTICE_MS = 8000;
let hiding = 0;

/** Shows a sentence for a while. */
export function notice(text, isBad = false) {
  const place = byId("notice");
  setText(place, text);
  place.className = isBad ? "bad" : "";
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { place.hidden = true; }, NOTICE_MS);
}

/** Asks the operator; true if they say yes. */
function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Asks the operator, then the coordinator, and shows `told(answer)`. */
export async function act({ title, text, yes, path, body, told }) {
  if (!(await confirmed(title, text, yes))) return;
  try {
    notice(told(await ask("POST", path, body)));
  } catch (error) {
    notice(`${title}: ${error.message || "the coordinator asks for another token"}`, true);
  }
}

/** Shows where the time of one request went. */
export async function showTimeline(request) {
  let report;
  try {
    report = await ask("GET", `requests/${encodeURIComponent(request.request_id)}`);
  } catch (error) {
    notice(error.message, true);
    return;
  }
  setText(byId("timeline-title"), `Request ${report.rid}`);
  const facts = [
    report.outcome || report.state,
    `${report.prompt_tokens} + ${report.completion_tokens} tokens, ${report.cached_tokens} cached`,
    `attempts ${report.attempts}`,
    `first token ${milliseconds(report.first_token_ms)}`,
    `in all ${milliseconds(report.total_ms)}`,
  ].join(" · ");
  byId("timeline-body").replaceChildren(
    element("p", {}, facts),
    ...(report.error ? [element("p", { className: "bad" }, report.error)] : []),
    element("p", { className: "muted" }, report.route_reason),
    spans(report),
  );
  byId("timeline").showModal();
}

function spans(report) {
  const whole = report.total_ms || 1;
  const rows = report.spans.map((span) => {
    const bar = element("i", { className: "span-bar" });
    bar.style.marginLeft = `${(span.start_ms / whole) * 100}%`;
    bar.style.width = `max(1px, ${(span.duration_ms / whole) * 100}%)`;
    return element("tr", {},
      element("td", {}, span.name),
      element("td", { className: "muted" }, span.where),
      element("td", { className: "number" }, milliseconds(span.duration_ms)),
      element("td", { className: "span-cell" }, bar));
  });
  return element("table", {}, element("tbody", {}, ...rows));
}
