// What the page shows around a desktop: a card where there is none, a ribbon while it is away.

const PATIENCE = 20000;

export class View {
  constructor(document) {
    const find = (id) => document.getElementById(id);
    this.desktop = find("desktop");
    this.still = find("still");
    this.card = find("card");
    this.spinner = find("spinner");
    this.stop = find("stop");
    this.title = find("card-title");
    this.text = find("card-text");
    this.action = find("card-action");
    this.ribbon = find("ribbon");
    this.ribbonText = find("ribbon-text");
    this.body = document.body;
    this.lostAt = null;
    find("card-late").remove();
    this.action.addEventListener("click", () => this.wake?.());
    addEventListener("online", () => this.wake?.());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.wake?.();
    });
  }

  live(name) {
    this.lostAt = null;
    document.title = name || "Desktop";
    this.desktop.setAttribute("aria-label", `Desktop ${name}`);
    this.card.hidden = this.ribbon.hidden = this.still.hidden = true;
    this.body.dataset.state = "live";
  }

  // Keeps the last picture in sight while the connection is away.
  freeze() {
    const picture = this.desktop.querySelector("canvas");
    if (!picture?.width) return;
    this.still.width = picture.width;
    this.still.height = picture.height;
    this.still.getContext("2d").drawImage(picture, 0, 0);
    this.still.hidden = false;
    this.#ribbon();
  }

  lost(why = "The server does not answer.") {
    this.lostAt ??= performance.now();
    const patient = performance.now() - this.lostAt < PATIENCE;
    this.body.dataset.state = "connecting";
    if (this.still.hidden || !patient) {
      const title = this.still.hidden ? "Connecting" : "Connection lost";
      this.#say(title, `${why} Trying again by itself.`, { action: true });
    } else {
      this.#ribbon();
    }
  }

  waiting(title, text) {
    this.body.dataset.state = "waiting";
    this.#say(title, text, { action: true });
  }

  refuse(title, text) {
    this.body.dataset.state = "refused";
    this.still.hidden = true;
    this.#say(title, text, { final: true });
    document.title = title;
  }

  // Waits, but no longer than until the network or the person comes back.
  pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #ribbon() {
    this.ribbonText.textContent = "Connection lost. Reconnecting…";
    this.ribbon.hidden = false;
    this.card.hidden = true;
  }

  #say(title, text, { action = false, final = false } = {}) {
    this.title.textContent = title;
    this.text.textContent = text;
    this.action.hidden = !action;
    this.spinner.hidden = final;
    // An element of a picture has no `hidden` of its own.
    this.stop.toggleAttribute("hidden", !final);
    this.card.setAttribute("role", final ? "alert" : "status");
    this.ribbon.hidden = true;
    this.card.hidden = false;
  }
}
