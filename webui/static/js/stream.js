// What the server tells of a session: by an event stream, or, asked every so often, by answers. Both go on by themselves
// whenever the server comes back, and call tell with { up: true }, { up: false, why } or { state }; why is the server's
// sentence, null where it does not answer.

const AGAIN_MS = 1000;
const TIMEOUT_MS = 10000; // of a question: a connection that sleeps answers never

export class Stream {
  #base;
  #tell;
  #source;
  #timer;
  #over = false;

  constructor(base, tell) {
    this.#base = base;
    this.#tell = tell;
    this.#open();
  }

  #open() {
    const source = (this.#source = new EventSource(`${this.#base}/events`));
    source.onopen = () => this.#tell({ up: true });
    source.onmessage = (event) => this.#tell({ state: JSON.parse(event.data) });
    source.onerror = async () => {
      const refused = source.readyState === EventSource.CLOSED; // else the browser tries again
      const { why } = refused ? await ask(this.#base) : { why: null };
      if (this.#over) return;
      this.#tell({ up: false, why });
      if (refused) this.#timer = setTimeout(() => this.#open(), AGAIN_MS);
    };
  }

  close() {
    this.#over = true;
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
    const news = await ask(this.#base);
    if (this.#over) return;
    this.#tell(news);
    this.#timer = setTimeout(() => this.#ask(), this.#every);
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
  }
}

async function ask(base) {
  try {
    const answer = await fetch(base, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    const said = await answer.json();
    return answer.ok ? { up: true, state: said } : { up: false, why: said.detail };
  } catch {
    return { up: false, why: null };
  }
}
