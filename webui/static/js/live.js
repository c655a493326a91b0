// The session's state as it changes: an event stream while the tab is visible, a question now and then while it is not
// (a browser allows six connections to one server). Goes on by itself whenever the server comes back.

const HIDDEN_MS = 3000;
const AGAIN_MS = 1000;
const GONE_AFTER_MS = 700; // a stream that ends and opens again at once is nobody's trouble

export class Live {
  #base;
  #events;
  #source = null;
  #timer = null;
  #gone = null;

  /** events: state(state), up(), down(). */
  constructor(base, events) {
    this.#base = base;
    this.#events = events;
    document.addEventListener("visibilitychange", () => this.#begin());
    addEventListener("pagehide", () => this.#end());
    addEventListener("pageshow", (event) => event.persisted && this.#begin());
    this.#begin();
  }

  #begin() {
    this.#end();
    if (document.hidden) this.#ask();
    else this.#listen();
  }

  #end() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
  }

  #listen() {
    const source = (this.#source = new EventSource(`${this.#base}/events`));
    source.onopen = () => this.#up();
    source.onmessage = (event) => this.#events.state(JSON.parse(event.data));
    source.onerror = () => {
      this.#down();
      if (source.readyState === EventSource.CLOSED) this.#timer = setTimeout(() => this.#begin(), AGAIN_MS);
    };
  }

  async #ask() {
    try {
      const answer = await fetch(this.#base);
      if (answer.ok) {
        this.#up();
        this.#events.state(await answer.json());
      } else this.#down();
    } catch {
      this.#down();
    }
    if (document.hidden) this.#timer = setTimeout(() => this.#ask(), HIDDEN_MS);
  }

  #up() {
    clearTimeout(this.#gone);
    this.#gone = null;
    this.#events.up();
  }

  #down() {
    this.#gone ??= setTimeout(() => this.#events.down(), GONE_AFTER_MS);
  }
}
