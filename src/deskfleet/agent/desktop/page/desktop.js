// noVNC's client, with what the page needs of it and it keeps to itself: the only place that
// touches its private parts. They are those of the version in package-lock.json; the tests of the
// page fail where another one has changed them.

import RFB from "@novnc/novnc";
import Deflator from "./node_modules/@novnc/novnc/core/deflator.js";

const TEXT = 1;

// noVNC's deflator forgets what doesn't fit into its buffer any more when it has read all of a text:
// the server hangs up on what it then gets. Here the buffer has room for everything.
const deflate = Deflator.prototype.deflate;
Deflator.prototype.deflate = function deflateWhole(data) {
  this.chunkSize = data.length + (data.length >> 6) + 1024;
  this.outputBuffer = new Uint8Array(this.chunkSize);
  return deflate.call(this, data);
};

export class Desktop extends RFB {
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

  // Tells once, as "clipboardagreed", that the server's clipboard takes all of Unicode: what is
  // pasted before goes as Latin-1, with question marks for the rest.
  _handleServerCutText() {
    const whole = super._handleServerCutText();
    if (!this.agreed && this._clipboardServerCapabilitiesFormats[TEXT]) {
      this.agreed = true;
      this.dispatchEvent(new CustomEvent("clipboardagreed"));
    }
    return whole;
  }

  // Asks for one pixel again, which a server answers however still its picture is.
  nudge() {
    RFB.messages.fbUpdateRequest(this._sock, false, 0, 0, 1, 1);
  }
}
