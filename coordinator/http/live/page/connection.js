// What the page asks of the coordinator, with the token that its operator has given.

const KEY = "kvrelay-admin-token";
const RETRY_MS = 2000;

/** The coordinator asks for a token, or for another one. */
export class TokenWanted extends Error {}

export const setToken = (token) => sessionStorage.setItem(KEY, token);
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

function headers() {
  const token = sessionStorage.getItem(KEY);
  // A header is Latin-1; the coordinator takes its bytes for UTF-8.
  const bytes = token === null ? null : new TextEncoder().encode(token);
  return bytes === null ? {} : { Authorization: `Bearer ${String.fromCharCode(...bytes)}` };
}

/** Asks for JSON. Throws an Error with the coordinator's own sentence, or TokenWanted. */
export async function ask(method, path, body) {
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(path, { method, headers: headers(), body: sent });
  if (response.status === 401) throw new TokenWanted();
  const text = await response.text();
  const answer = text ? JSON.parse(text) : null;
  if (!response.ok) throw new Error(answer?.error?.message ?? `the coordinator answers ${response.status}`);
  return answer;
}

/**
 * Reads the stream of snapshots for ever, and comes back after RETRY_MS when it breaks off.
 *
 * EventSource cannot send a token, so the stream is read with fetch. Ends with TokenWanted alone.
 */
export async function follow(onSnapshot, onBroken) {
  for (;;) {
    try {
      await readOnce(onSnapshot);
      onBroken("the coordinator has ended the stream");
    } catch (error) {
      if (error instanceof TokenWanted) throw error;
      onBroken(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function readOnce(onSnapshot) {
  const response = await fetch("events", { headers: headers() });
  if (response.status === 401) throw new TokenWanted();
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) onSnapshot(JSON.parse(event.slice("data: ".length)));
    }
  }
}
