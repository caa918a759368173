// Carries text between this computer's clipboard and the desktop's, both ways and by itself where
// the browser lets a page do so; the text box of the panel is there for all the others. By itself,
// only news goes to the desktop: it may have copied something since, and the program that did
// offers more than the text that came here.

const TYPING = 300;
// Characters of up to three bytes each: a desktop takes 20 MiB.
const MOST = 6 * 1024 * 1024;

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
    this.held = null; // by this computer, as far as is known
    this.given = null; // to the desktop, until it copies something itself
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
    rfb.addEventListener("clipboard", this.hear);
    // What a connection has given goes with it.
    if (this.given !== null) this.#toDesktop(this.given);
    this.#readIfAllowed();
  }

  detach() {
    this.rfb?.removeEventListener("clipboard", this.hear);
    this.rfb = null;
  }

  async #fromDesktop(text) {
    if (!this.may.copy) return;
    this.given = null;
    this.text.value = text;
    try {
      await this.#write(text);
      this.unwritten = null;
      this.note.textContent = "";
    } catch {
      // Not focused, or no gesture yet: the next one will do.
      this.unwritten = text;
    }
  }

  #toDesktop(text) {
    if (!this.may.paste) return;
    if (text.length > MOST) {
      this.note.textContent = "This text is too long for the clipboard of the desktop.";
      return;
    }
    this.given = text;
    this.rfb?.clipboardPasteFrom(text);
  }

  async #write(text) {
    const before = this.held;
    // At once: the browser may tell of the change before it is done.
    this.held = text;
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      this.held = before;
      throw error;
    }
  }

  async #writeLate() {
    if (this.unwritten === null) return;
    const text = this.unwritten;
    this.unwritten = null;
    try {
      await this.#write(text);
    } catch {
      this.note.textContent = "This browser keeps its clipboard to itself: copy from the box above.";
    }
  }

  async #gesture() {
    await this.#writeLate();
    if (this.asked || !this.may.paste) return;
    this.asked = true;
    if ((await this.#readState()) === "prompt") await this.#read({ all: false });
  }

  async #copy() {
    try {
      await this.#write(this.text.value);
      this.note.textContent = "Copied.";
    } catch {
      this.text.select();
      this.note.textContent = "Press Ctrl+C to copy the selected text.";
    }
  }

  async #read({ all = true } = {}) {
    try {
      // Windows ends lines in its own way.
      const text = (await navigator.clipboard.readText()).replaceAll("\r\n", "\n");
      this.note.textContent = "";
      // A picture is no text, and takes nothing away from the desktop.
      if (text === "" || (text === this.held && !all)) return;
      this.held = this.text.value = text;
      this.#toDesktop(text);
    } catch {
      this.note.textContent = "This browser keeps its clipboard to itself: paste into the box above.";
    }
  }

  async #readIfAllowed() {
    if (!this.rfb || !document.hasFocus()) return;
    // What the desktop has copied meanwhile is newer than what this computer holds.
    if (this.unwritten !== null) return this.#writeLate();
    if (!this.may.paste) return;
    if ((await this.#readState()) === "granted") await this.#read({ all: false });
  }

  async #readState() {
    try {
      return (await navigator.permissions.query({ name: "clipboard-read" })).state;
    } catch {
      return "unknown";
    }
  }
}
