// One connection to a desktop, from the WebSocket's opening to its end.

import RFB from "@novnc/novnc";
import Deflator from "./node_modules/@novnc/novnc/core/deflator.js";
import { askStanding } from "./admission.js";

const QUIET = 15000;
const CHECK = 5000;
const RENEW = 30 * 60 * 1000;
const TEXT = 1;

// A page has one connection at most: the server lets a new one take the place of one that the
// network has swallowed, even where no other seat is free.
const page = crypto.randomUUID();

function addressOf(sessionId) {
  const address = new URL(`rfb/${encodeURIComponent(sessionId)}?page=${page}`, location.href);
  address.protocol = "wss:";
  address.hash = "";
  return address;
}

// noVNC's deflator forgets what doesn't fit into its buffer any more when it has read all of a text:
// the server hangs up on what it then gets. Here the buffer has room for everything.
const deflate = Deflator.prototype.deflate;
Deflator.prototype.deflate = function deflateWhole(data) {
  this.chunkSize = data.length + (data.length >> 6) + 1024;
  this.outputBuffer = new Uint8Array(this.chunkSize);
  return deflate.call(this, data);
};

// What the page needs of noVNC, and noVNC keeps to itself.
class Desktop extends RFB {
  // Leaves fractions of pixels out, as desktops do. A window at 125 % has some, and would otherwise
  // ask for its size again and again, since no desktop ever takes it.
  _screenSize() {
    const { w, h } = super._screenSize();
    return { w: Math.floor(w), h: Math.floor(h) };
  }

  // Tells once, as "picture", that there is something to see: on a slow line long after "connect".
  _framebufferUpdate() {
    const whole = super._framebufferUpdate();
    if (whole && this.drawn && !this.told) {
      this.told = true;
      this._display.flush().then(() => this.dispatchEvent(new CustomEvent("picture")));
    }
    return whole;
  }

  _handleDataRect() {
    const whole = super._handleDataRect();
    this.drawn ||= whole;
    return whole;
  }

  // Asks for one pixel again, which a server answers however still its picture is.
  nudge() {
    RFB.messages.fbUpdateRequest(this._sock, false, 0, 0, 1, 1);
  }
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

// noVNC tells nobody when the server has said that its clipboard takes all of Unicode, and until
// then sends Latin-1, with question marks for the rest.
function whenClipboardIsAgreed(rfb, socket, then) {
  socket.addEventListener("message", function heard() {
    if (!rfb._clipboardServerCapabilitiesFormats[TEXT]) return;
    socket.removeEventListener("message", heard);
    then();
  });
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

    rfb.addEventListener("connect", () => {
      whenClipboardIsAgreed(rfb, socket, () => tools.shareClipboard(rfb, features));
    });
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
