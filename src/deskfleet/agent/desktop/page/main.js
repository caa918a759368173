// Opens one session: swaps the token of its address for a cookie, connects, and comes back by
// itself whenever the connection is lost, until the server says that there is nothing to come
// back to. The server alone decides who may do what; this page only shows it.

import { askStanding, swapToken } from "./admission.js";
import { connect } from "./connection.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const FIRST_WAIT = 250;
const LONGEST_WAIT = 5000;
const SEAT_WAIT = 5000;
const FULL = 4429;
const UNSUPERVISED = "permissions.unsupervised";

function takeToken() {
  const token = new URLSearchParams(location.search).get("authToken");
  // At once and whatever comes of it: history and shared screens must not keep it.
  history.replaceState(null, "", location.pathname + location.hash);
  return token;
}

function sessionOfAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

async function open(sessionId, token, view) {
  const tools = new Tools(document);
  let wait = FIRST_WAIT;
  let pendingToken = token;
  for (;;) {
    let standing = null;
    if (pendingToken !== null) {
      standing = await swapToken(sessionId, pendingToken);
      if (standing.refused) return view.refuse("This link does not open a desktop", standing.refused);
      if (standing.admitted) pendingToken = null;
    }
    if (pendingToken === null) standing = await askStanding(sessionId);
    if (standing.refused && standing.code !== UNSUPERVISED) {
      tools.hide();
      const ended = standing.code === "session.ended";
      return view.refuse(ended ? "Session ended" : "You can't connect", standing.refused);
    }
    if (standing.refused) {
      tools.hide();
      view.waiting("Waiting for the owner", standing.refused);
      await view.pause(SEAT_WAIT);
      continue;
    }
    if (standing.about) {
      const end = await connect(sessionId, standing.about, view, tools);
      if (end.code === FULL) {
        tools.hide();
        view.waiting("All seats are taken", "You will be connected when somebody leaves.");
        await view.pause(SEAT_WAIT);
        continue;
      }
      if (end.lived) wait = FIRST_WAIT;
    }
    view.lost(standing.unsure);
    await view.pause(wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

const token = takeToken();
addEventListener("hashchange", () => location.reload());

// The page that says no uses this script too, to clean its address.
if (document.getElementById("desktop")) {
  const view = new View(document);
  const sessionId = sessionOfAddress();
  if (sessionId) {
    await open(sessionId, token, view);
  } else {
    view.refuse("No session", "This address does not say which session to open.");
  }
}
