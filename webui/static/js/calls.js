// Calls a person back who has gone to another tab when clips are ready: title, icon, and, if they want it, a
// notification or a short sound. Asked once.

const STORED = "rlhf-gym call"; // notify, sound or no
const ICON = "/static/icon.svg";
const CALLING = "/static/icon-call.svg";

export class Calls {
  #icon = document.querySelector("link[rel=icon]");
  #ask = document.getElementById("ask-call");
  #audio = null;
  #notification = null;

  constructor() {
    document.addEventListener("visibilitychange", () => document.hidden || this.#answered());
    this.#ask.querySelector("[data-call=notify]").hidden = !("Notification" in window);
    this.#ask.addEventListener("click", async (event) => {
      const how = event.target.closest("button")?.dataset.call;
      if (!how) return;
      this.#ask.hidden = true;
      if (how === "sound") this.#sound();
      const refused = how === "notify" && (await Notification.requestPermission()) !== "granted";
      localStorage.setItem(STORED, refused ? "no" : how);
    });
    // a browser lets a page make a sound only after a click or a key
    for (const kind of ["pointerdown", "keydown"]) {
      addEventListener(kind, () => this.#wanted === "sound" && this.#context(), { once: true });
    }
  }

  get #wanted() {
    return localStorage.getItem(STORED);
  }

  /** While the person waits is the moment to ask. */
  offer(waiting) {
    this.#ask.hidden = !waiting || this.#wanted !== null;
  }

  get calling() {
    return this.#icon.getAttribute("href") === CALLING;
  }

  /** Clips are ready: nothing happens where the person looks at the page. */
  call(name, pairs) {
    if (!document.hidden) return;
    this.#icon.setAttribute("href", CALLING);
    if (this.#wanted === "sound") this.#sound();
    if (this.#wanted === "notify" && Notification.permission === "granted") {
      try {
        this.#notification = new Notification(`${pairs} pairs to compare`, { body: name, icon: ICON, tag: `rlhf-gym ${name}` });
        this.#notification.onclick = () => window.focus();
      } catch {
        // Chrome on Android wants a service worker for these: title and icon have to do
      }
    }
  }

  #answered() {
    this.#icon.setAttribute("href", ICON);
    this.#notification?.close();
    this.#notification = null;
  }

  #context() {
    this.#audio ??= new AudioContext();
    this.#audio.resume();
    return this.#audio;
  }

  /** Two soft notes, a fifth apart. */
  #sound() {
    const audio = this.#context();
    [523.25, 783.99].forEach((pitch, i) => {
      const start = audio.currentTime + 0.02 + i * 0.16;
      const gain = new GainNode(audio, { gain: 0 });
      gain.gain.linearRampToValueAtTime(0, start);
      gain.gain.linearRampToValueAtTime(0.12, start + 0.02);
      gain.gain.exponentialRampToValueAtTime(0.0005, start + 0.7);
      const note = new OscillatorNode(audio, { frequency: pitch });
      note.connect(gain).connect(audio.destination);
      note.start(start);
      note.stop(start + 0.75);
    });
  }
}
