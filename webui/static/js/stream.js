// What the server tells of a session: by an event stream, or, asked every so often, by answers. Both go on by themselves
// whenever the server comes back, and call tell with { up: true }, { up: false } or { state }.

const AGAIN_MS = 1000;

export class Stream {
  #base;
  #tell;
  #source;
  #timer;

  constructor(base, tell) {
    this.#base = base;
    this.#tell = tell;
    this.#open();
  }

  #open() {
    const source = (this.#source = new EventSource(`${this.#base}/events`));
    source.onopen = () => this.#tell({ up: true });
    source.onmessage = (event) => this.#tell({ state: JSON.parse(event.data) });
    source.onerror = () => {
      this.#tell({ up: false });
      if (source.readyState === EventSource.CLOSED) this.#timer = setTimeout(() => this.#open(), AGAIN_MS);
    };
  }

  close() {
    this.#source.close();
    clearTimeout(this.#timer);
  }
}

export class Questions {
  #base;
  #every;
  #tell;
  #timer;
  #over = false;

  constructor(base, everyMs, tell) {
    this.#base = base;
    this.#every = everyMs;
    this.#tell = tell;
    this.#ask();
  }

  async #ask() {
    let state = null;
    try {
      const answer = await fetch(this.#base);
      if (answer.ok) state = await answer.json();
    } catch {
      // no connection: told below
    }
    if (this.#over) return;
    this.#tell({ up: state !== null });
    if (state) this.#tell({ state });
    this.#timer = setTimeout(() => this.#ask(), this.#every);
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
  }
}
