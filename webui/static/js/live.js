// The session's state as it changes: from the server's event stream while the tab is visible, a question now and then
// while it is not. Where the browser has shared workers, all of its pages share their streams (see shared.js).

import { Questions, Stream } from "./stream.js";

const HIDDEN_MS = 3000;
const GONE_AFTER_MS = 700; // a stream that ends and opens again at once is nobody's trouble

export class Live {
  #base;
  #events;
  #source = null;
  #worker = null; // kept: one that is garbage tells of no error
  #shared = null; // its port
  #gone = null;
  #why = null; // the server answers, but not with a state

  /** events: state(state), up(), down(why). */
  constructor(base, events) {
    this.#base = base;
    this.#events = events;
    if ("SharedWorker" in window) {
      try {
        this.#worker = new SharedWorker("/static/js/shared.js", { type: "module" });
        this.#shared = this.#worker.port;
        this.#worker.onerror = () => {
          this.#shared = null; // it did not start: a stream of our own
          this.#begin();
        };
      } catch {
        this.#shared = null; // the browser's settings forbid it
      }
    }
    document.addEventListener("visibilitychange", () => this.#begin());
    addEventListener("pagehide", () => this.#end());
    addEventListener("pageshow", (event) => event.persisted && this.#begin());
    this.#begin();
  }

  #begin() {
    this.#end();
    const tell = (news) => this.#hear(news);
    if (document.hidden) this.#source = new Questions(this.#base, HIDDEN_MS, tell);
    else if (this.#shared) this.#source = share(this.#shared, this.#base, tell);
    else this.#source = new Stream(this.#base, tell);
  }

  #end() {
    this.#source?.close();
    this.#source = null;
  }

  #hear({ up, why, state }) {
    if (up) {
      clearTimeout(this.#gone);
      this.#gone = this.#why = null;
      this.#events.up();
    } else if (up === false) this.#down(why);
    if (state) this.#events.state(state);
  }

  #down(why) {
    if (why || this.#why) this.#events.down(why);
    else this.#gone ??= setTimeout(() => this.#events.down(this.#why), GONE_AFTER_MS);
    this.#why = why;
  }
}

/** A Stream by way of the shared worker. */
function share(port, base, tell) {
  port.onmessage = ({ data }) => tell(data);
  port.postMessage({ follow: base });
  return {
    close() {
      port.onmessage = null;
      port.postMessage({ leave: true });
    },
  };
}
