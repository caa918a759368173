// What the server says of this visitor. A network that doesn't answer is no refusal: `away`; nor is
// a server that can't tell right now, and says so: `unsure`.

const PATIENCE = 8000;

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, {
      cache: "no-store",
      credentials: "same-origin",
      signal: AbortSignal.timeout(PATIENCE),
      ...options,
    });
    if (response.status === 204) return { admitted: true };
    const body = await response.json();
    if (response.ok) return { about: body };
    if (response.status < 500) return { refused: body.message, code: body.code };
    return { away: true, unsure: body.message };
  } catch {
    // Offline, cut off, or something else in between that speaks no JSON.
  }
  return { away: true };
}

export function swapToken(sessionId, authToken) {
  return ask("connect", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sessionId, authToken }),
  });
}

export function askStanding(sessionId) {
  return ask(`admission/${encodeURIComponent(sessionId)}`);
}
