// The grip at the edge and its panel: what a desktop needs that a browser's window doesn't have.

import { Clipboard } from "./clipboard.js";

export class Tools {
  constructor(document) {
    const find = (id) => document.getElementById(id);
    this.document = document;
    this.root = find("tools");
    this.panel = find("panel");
    this.grip = find("grip");
    this.name = find("panel-name");
    this.fullscreen = find("fullscreen");
    this.attention = find("attention");
    this.rfb = null;
    this.clipboard = new Clipboard(document);
    this.grip.addEventListener("click", () => this.#open(this.panel.hidden));
    this.fullscreen.addEventListener("click", () => this.#toggleFullscreen());
    this.attention.addEventListener("click", () => {
      this.rfb?.sendCtrlAltDel();
      this.#open(false);
    });
    find("desktop").addEventListener("pointerdown", () => this.#open(false, { focus: false }));
    this.root.addEventListener("keydown", ({ key }) => {
      if (key === "Escape") this.#open(false);
    });
    // A desktop takes every key, Tab too: without one of its own nobody gets here without a mouse.
    find("desktop").addEventListener("keydown", (event) => this.#openByKey(event), { capture: true });
    // noVNC lets go of the keys that are held only when the whole window has lost the focus.
    find("desktop").addEventListener("focusout", () => dispatchEvent(new Event("blur")));
    document.addEventListener("fullscreenchange", () => this.#labelFullscreen());
  }

  show(rfb, name, features) {
    this.rfb = rfb;
    this.name.textContent = name || "Desktop";
    this.fullscreen.hidden = !this.document.fullscreenEnabled;
    this.attention.hidden = !(features.has("keyboard") && features.has("keyboard-sas"));
    this.root.hidden = false;
    if (this.panel.hidden) rfb.focus({ preventScroll: true });
  }

  shareClipboard(rfb, features) {
    this.clipboard.attach(rfb, {
      copy: features.has("clipboard-copy"),
      paste: features.has("clipboard-paste"),
    });
  }

  detach() {
    this.rfb = null;
    this.clipboard.detach();
  }

  hide() {
    this.#open(false);
    this.root.hidden = true;
  }

  #open(open, { focus = true } = {}) {
    const was = !this.panel.hidden;
    this.panel.hidden = !open;
    this.grip.setAttribute("aria-expanded", String(open));
    if (open) this.panel.querySelector("button:not([hidden])")?.focus();
    else if (was && focus) this.rfb?.focus({ preventScroll: true });
  }

  #openByKey(event) {
    const { code, ctrlKey, altKey, shiftKey } = event;
    if (code !== "KeyT" || !ctrlKey || !altKey || !shiftKey || event.getModifierState("AltGraph")) return;
    event.preventDefault();
    event.stopPropagation();
    this.#open(true);
  }

  async #toggleFullscreen() {
    this.#open(false);
    if (this.document.fullscreenElement) return this.document.exitFullscreen();
    try {
      await this.document.documentElement.requestFullscreen();
      // Where the browser can, Alt+Tab and its like go to the desktop too.
      await navigator.keyboard?.lock?.();
    } catch {
      // The browser says no; the window stays as it is.
    }
  }

  #labelFullscreen() {
    const label = this.document.fullscreenElement ? "Leave full screen" : "Full screen";
    this.fullscreen.querySelector("span").textContent = label;
  }
}
