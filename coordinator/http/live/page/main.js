// Puts the page together: asks for the token if one is wanted, then shows each snapshot.

import { TokenWanted, follow, hasToken, setToken } from "./connection.js";
import { byId, clock, setText } from "./elements.js";
import { showCache } from "./cache.js";
import { showEvents } from "./events.js";
import { showLinks } from "./links.js";
import { showNodes } from "./nodes.js";
import { showRequests } from "./requests.js";
import { showDecisions } from "./routing.js";
import { showTiles, showWaterfall } from "./status.js";

const STALE_MS = 3500;
let staleAt = 0;

function show(snapshot) {
  byId("panels").hidden = false;
  byId("token-form").hidden = true;
  const others = snapshot.num_coordinators > 1 ? ` · one of ${snapshot.num_coordinators} coordinators: requests and decisions are its own` : "";
  setText(byId("about"), `${snapshot.model} · policy ${snapshot.policy} · ${snapshot.coordinator} · ${snapshot.version}${others}`);
  showTiles(snapshot.tiles);
  showWaterfall(snapshot.waterfall);
  showNodes(snapshot.nodes);
  showLinks(snapshot.links, snapshot.nodes);
  showCache(snapshot.cache);
  showDecisions(snapshot.decisions);
  showRequests(snapshot);
  showEvents(snapshot.events);
  setConnection(`live · ${clock(snapshot.unix_s)}`, "");
  clearTimeout(staleAt);
  staleAt = setTimeout(() => setConnection(`no news since ${clock(snapshot.unix_s)}`, "bad"), STALE_MS);
}

function setConnection(text, level) {
  setText(byId("connection"), text);
  byId("connection").className = level;
  document.body.classList.toggle("stale", level === "bad");
}

async function start() {
  try {
    await follow(show, (why) => setConnection(`disconnected: ${why}; trying again`, "bad"));
  } catch (error) {
    if (!(error instanceof TokenWanted)) throw error;
    clearTimeout(staleAt);
    setConnection("a token is wanted", "");
    setText(byId("token-problem"), hasToken() ? "The coordinator refuses this token." : "");
    byId("panels").hidden = true;
    byId("token-form").hidden = false;
    byId("token").focus();
  }
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value);
  byId("token").value = "";
  start();
});

start();
