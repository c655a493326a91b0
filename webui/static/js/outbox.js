// Labels and undos on their way to the server: one after the other, each tried until it is answered.
//
// The page shows the next pair at once; what it has not yet been told is on disk waits here, survives a reload of the
// tab, and is shown as not saved when it takes long. The id of each makes a retry count once.

const LATE_MS = 500; // an answer that takes longer: the database is busy, perhaps
const FIRST_RETRY_MS = 300;
const LONGEST_RETRY_MS = 3000;
const ASK_TIMEOUT_MS = 10000; // of a question: a connection that sleeps answers never
const TIMEOUT_MS = 40000; // longer than the server itself waits for the database

export class Outbox {
  #base;
  #created;
  #key;
  #listeners;
  #waiting = [];
  #busy = false;
  #retry = null;
  #failures = 0;
  #trouble = null; // what was told of it last: { why }

  /** events: saved(item, answer), refused(item, sentence), trouble(count, sentence or null). */
  constructor(base, { name, created }, events) {
    const key = `rlhf-gym outbox ${name} ${created}`;
    this.#base = base;
    this.#created = created;
    this.#key = key;
    this.#listeners = [events];
    this.#waiting = JSON.parse(sessionStorage.getItem(key) ?? "[]");
    addEventListener("beforeunload", (event) => {
      if (this.#trouble) event.preventDefault();
    });
  }

  /** Further events for someone else: any of those. */
  listen(events) {
    this.#listeners.push(events);
  }

  get items() {
    return this.#waiting;
  }

  /** kind: labels or undo; body: what is posted, given an id here; extra: kept with it for the events. */
  add(kind, body, extra = {}) {
    this.#waiting.push({ kind, body: { id: newId(), created: this.#created, ...body }, ...extra });
    this.#store();
    if (this.#trouble) this.#complain(this.#trouble.why); // of one more
    this.kick();
  }

  /** Tries now rather than at the next turn. */
  kick() {
    clearTimeout(this.#retry);
    if (!this.#busy && this.#waiting.length) this.#send();
  }

  async #send() {
    this.#busy = true;
    const late = setTimeout(() => this.#complain(this.#trouble?.why ?? null), LATE_MS);
    const item = this.#waiting[0];
    const there = this.#failures ? await getJson(this.#base) : { created: this.#created };
    const other = there && there.created !== this.#created; // a session of that name: these are not for it
    const { status, answer } =
      there && !other ? await post(`${this.#base}/${item.kind}`, item.body) : { status: 0, answer: null };
    this.#busy = false;
    clearTimeout(late);
    if (other) {
      this.#trouble = null; // the page is loaded anew; they stay where they are
      return;
    }
    if (status === 0 || status === 401 || status >= 500) {
      this.#failures += 1;
      this.#complain(status ? answer?.detail : null);
      this.#retry = setTimeout(() => this.kick(), Math.min(FIRST_RETRY_MS * 2 ** (this.#failures - 1), LONGEST_RETRY_MS));
      return;
    }
    this.#failures = 0;
    this.#trouble = null;
    this.#waiting.shift();
    this.#store();
    this.#tell("trouble", 0, null);
    if (status < 300) this.#tell("saved", item, answer);
    else this.#tell("refused", item, answer?.detail ?? `The server answered ${status}.`);
    this.kick();
  }

  #complain(why) {
    this.#trouble = { why };
    this.#tell("trouble", this.#waiting.length, why);
  }

  #tell(what, ...how) {
    for (const events of this.#listeners) events[what]?.(...how);
  }

  #store() {
    if (this.#waiting.length) sessionStorage.setItem(this.#key, JSON.stringify(this.#waiting));
    else sessionStorage.removeItem(this.#key);
  }
}

/** The answer's JSON; null where none came. */
export async function getJson(url) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(ASK_TIMEOUT_MS) });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** Posts JSON; status 0 means that no answer came. */
export async function post(url, body) {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      keepalive: true,
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    return { status: answer.status, answer: await answer.json().catch(() => null) };
  } catch {
    return { status: 0, answer: null };
  }
}

function newId() {
  // crypto.randomUUID is missing on plain http from another machine; this is there always
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}
