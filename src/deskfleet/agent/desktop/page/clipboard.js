// Carries text between this computer's clipboard and the desktop's, both ways and by itself where
// the browser lets a page do so; the text box of the panel is there for all the others.

const TYPING = 300;

export class Clipboard {
  constructor(document) {
    const find = (id) => document.getElementById(id);
    this.section = find("clipboard");
    this.text = find("clipboard-text");
    this.copyButton = find("clipboard-copy");
    this.pasteButton = find("clipboard-paste");
    this.note = find("clipboard-note");
    this.rfb = null;
    this.may = { copy: false, paste: false };
    this.known = null;
    this.unwritten = null;
    this.asked = false;
    this.hear = ({ detail }) => this.#fromDesktop(detail.text);

    this.copyButton.addEventListener("click", () => this.#copy());
    this.pasteButton.addEventListener("click", () => this.#read());
    this.text.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.#toDesktop(this.text.value), TYPING);
    });
    addEventListener("focus", () => this.#readIfAllowed());
    navigator.clipboard?.addEventListener?.("clipboardchange", () => this.#readIfAllowed());
    // A browser asks its user once; the first click on the desktop is the moment to do so.
    find("desktop").addEventListener("pointerdown", () => this.#gesture(), { capture: true });
    find("desktop").addEventListener("keydown", () => this.#writeLate(), { capture: true });
  }

  attach(rfb, may) {
    this.rfb = rfb;
    this.may = may;
    this.section.hidden = !may.copy && !may.paste;
    this.copyButton.hidden = !may.copy;
    this.pasteButton.hidden = !may.paste;
    this.text.readOnly = !may.paste;
    this.known = null;
    rfb.addEventListener("clipboard", this.hear);
    this.#readIfAllowed();
  }

  detach() {
    this.rfb?.removeEventListener("clipboard", this.hear);
    this.rfb = null;
  }

  async #fromDesktop(text) {
    if (!this.may.copy) return;
    this.known = this.text.value = text;
    try {
      await navigator.clipboard.writeText(text);
      this.unwritten = null;
      this.note.textContent = "";
    } catch {
      // Not focused, or no gesture yet: the next one will do.
      this.unwritten = text;
    }
  }

  #toDesktop(text) {
    if (!this.rfb || !this.may.paste || text === this.known) return;
    this.known = this.text.value = text;
    this.rfb.clipboardPasteFrom(text);
  }

  async #writeLate() {
    if (this.unwritten === null) return;
    const text = this.unwritten;
    this.unwritten = null;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      this.note.textContent = "This browser keeps its clipboard to itself: copy from the box above.";
    }
  }

  async #gesture() {
    await this.#writeLate();
    if (this.asked || !this.may.paste) return;
    this.asked = true;
    if ((await this.#readState()) === "prompt") await this.#read();
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.text.value);
      this.note.textContent = "Copied.";
    } catch {
      this.text.select();
      this.note.textContent = "Press Ctrl+C to copy the selected text.";
    }
  }

  async #read() {
    try {
      this.#toDesktop(await navigator.clipboard.readText());
      this.note.textContent = "";
    } catch {
      this.note.textContent = "This browser keeps its clipboard to itself: paste into the box above.";
    }
  }

  async #readIfAllowed() {
    if (!this.rfb || !document.hasFocus()) return;
    // What the desktop has copied meanwhile is newer than what this computer holds.
    if (this.unwritten !== null) return this.#writeLate();
    if (!this.may.paste) return;
    if ((await this.#readState()) === "granted") await this.#read();
  }

  async #readState() {
    try {
      return (await navigator.permissions.query({ name: "clipboard-read" })).state;
    } catch {
      return "unknown";
    }
  }
}
