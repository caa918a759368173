// One connection to a desktop, from the WebSocket's opening to its end.

import { askStanding } from "./admission.js";
import { Desktop } from "./desktop.js";

const QUIET = 15000;
const CHECK = 5000;
const RENEW = 30 * 60 * 1000;

// A page has one connection at most: the server lets a new one take the place of one that the
// network has swallowed, even where no other seat is free.
const page = crypto.randomUUID();

function addressOf(sessionId) {
  const address = new URL(`rfb/${encodeURIComponent(sessionId)}?page=${page}`, location.href);
  address.protocol = "wss:";
  address.hash = "";
  return address;
}

// A dead network closes no WebSocket by itself: when a desktop has been quiet for a while, nudge
// it, ask its server over another way, and give the connection up where either has no answer: the
// other way may lead through a network that has come in the place of a lost one.
function watch(sessionId, socket, nudge, giveUp) {
  // A clock that goes on while the computer sleeps.
  let heard = Date.now();
  let nudged = heard;
  let asked = heard;
  let asking = false;
  const open = () => socket.readyState === WebSocket.CONNECTING || socket.readyState === WebSocket.OPEN;
  socket.addEventListener("message", () => { heard = Date.now(); });
  async function check() {
    if (asking) return;
    asking = true;
    asked = Date.now();
    const standing = await askStanding(sessionId);
    asking = false;
    if (!standing.about && !standing.unsure && open()) giveUp();
  }
  const timer = setInterval(() => {
    const now = Date.now();
    if (nudged > heard && now - nudged > QUIET) {
      if (open()) giveUp();
    } else if (now - heard > QUIET) {
      if (nudged <= heard) {
        nudged = now;
        nudge();
      }
      check();
    } else if (now - asked > RENEW) {
      // The cookie of a page whose desktop is never quiet grows old, too.
      asked = now;
      askStanding(sessionId);
    }
  }, CHECK);
  addEventListener("offline", check);
  return () => {
    clearInterval(timer);
    removeEventListener("offline", check);
  };
}

// Resolves when it is over, with the close code and whether a desktop was ever seen.
export function connect(sessionId, about, view, tools) {
  return new Promise((resolve) => {
    const socket = new WebSocket(addressOf(sessionId), ["binary"]);
    const features = new Set(about.features);
    const end = { code: 1006, lived: false };
    // Before the client's own listener, which takes the picture away.
    socket.addEventListener("close", ({ code }) => {
      end.code = code;
      if (end.lived) view.freeze();
    });

    const rfb = new Desktop(view.desktop, socket, { shared: true });
    rfb.background = "transparent";
    rfb.scaleViewport = true;
    rfb.viewOnly = !["keyboard", "mouse", "clipboard-copy", "clipboard-paste"].some((one) => features.has(one));
    rfb.resizeSession = features.has("keyboard") || features.has("mouse");
    const unwatch = watch(sessionId, socket, () => end.lived && rfb.nudge(), () => {
      if (end.lived) view.freeze();
      rfb.disconnect();
    });

    rfb.addEventListener("clipboardagreed", () => tools.shareClipboard(rfb, features));
    rfb.addEventListener("picture", () => {
      if (socket.readyState !== WebSocket.OPEN) return;
      end.lived = true;
      view.live(about.name);
      tools.show(rfb, about.name, features);
    });
    rfb.addEventListener("disconnect", () => {
      unwatch();
      tools.detach();
      resolve(end);
    });
  });
}
