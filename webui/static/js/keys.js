// Which key does what: two sets to choose from, each key of them changeable, kept in this browser.

const ACTIONS = [
  { does: "left", says: "left is better", arrows: "ArrowLeft", hand: "a" },
  { does: "right", says: "right is better", arrows: "ArrowRight", hand: "d" },
  { does: "equal", says: "equally good", arrows: "ArrowUp", hand: "w" },
  { does: "skip", says: "can’t tell", arrows: "ArrowDown", hand: "s" },
  { does: "undo", says: "take back the last", arrows: "z", hand: "q" },
  { does: "play", says: "pause, play", arrows: " ", hand: " " },
  { does: "back", says: "one frame back", arrows: ",", hand: "z" },
  { does: "on", says: "one frame on", arrows: ".", hand: "x" },
  { does: "quarter", says: "quarter speed", arrows: "1", hand: "1" },
  { does: "half", says: "half speed", arrows: "2", hand: "2" },
  { does: "full", says: "full speed", arrows: "3", hand: "3" },
  { does: "restart", says: "from the first frame", arrows: "r", hand: "r" },
  { does: "previous", says: "the pair before, among labels", arrows: "p", hand: "p" },
  { does: "next", says: "the next pair, among labels", arrows: "n", hand: "n" },
  { does: "help", says: "this list", arrows: "?", hand: "?" },
];
const SETS = ["arrows", "hand"];
const ALWAYS = { Backspace: "undo", Escape: "keep" }; // unless the person gives the key another meaning
const CAPS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space" };
const MAY_REPEAT = new Set(["back", "on"]); // a long press on any other key counts once
const MODIFIERS = new Set(["Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock", "Tab", "Enter", "Dead", "Process"]);
const STORED = "rlhf-gym keys";

/** As it is on the key: letters small, whatever Shift does. */
const nameOf = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);

export class Keys {
  #set = SETS[0];
  #own = {}; // action -> key, where it differs from the set
  #changed;

  /** changed() is called whenever a key has got another meaning. */
  constructor(changed = () => {}) {
    this.#changed = changed;
    try {
      const { set, own } = JSON.parse(localStorage.getItem(STORED)) ?? {};
      if (SETS.includes(set)) this.#set = set;
      for (const { does } of ACTIONS) if (typeof own?.[does] === "string") this.#own[does] = own[does];
    } catch {
      // what is stored is not ours: the usual keys
    }
  }

  get set() {
    return this.#set;
  }

  get changedByHand() {
    return Object.keys(this.#own).length > 0;
  }

  /** Takes a set as it is; what was changed by hand is forgotten. */
  choose(set) {
    this.#set = set;
    this.#own = {};
    this.#keep();
  }

  /** Gives an action a key; whatever had that key gets the one that has become free. */
  give(does, key) {
    const before = this.key(does);
    const other = ACTIONS.find((action) => action.does !== does && this.key(action.does) === key);
    for (const [action, now] of [[does, key], ...(other ? [[other.does, before]] : [])]) {
      if (ACTIONS.find((a) => a.does === action)[this.#set] === now) delete this.#own[action];
      else this.#own[action] = now;
    }
    this.#keep();
  }

  key(does) {
    return this.#own[does] ?? ACTIONS.find((action) => action.does === does)[this.#set];
  }

  cap(does) {
    const key = this.key(does);
    return CAPS[key] ?? (key.length === 1 ? key.toUpperCase() : key);
  }

  rows() {
    return ACTIONS.map(({ does, says }) => ({ does, says, cap: this.cap(does) }));
  }

  /** Calls act(what, strong) for each key that means something here; takes(what): whether it does just now. Keys in a
   * dialog are the dialog's own: `within`. */
  listen(act, takes = () => true, within = null) {
    (within ?? document).addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      if (event.target.closest?.("input:not([type=range]), textarea, select")) return;
      if (document.querySelector("dialog[open]") !== within) return;
      if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button, a, video")) return;
      const key = nameOf(event);
      const what = ACTIONS.find(({ does }) => this.key(does) === key)?.does ?? ALWAYS[key];
      if (!what || !takes(what)) return;
      event.preventDefault(); // arrows scroll, Backspace goes back
      document.documentElement.classList.add("keyboard"); // a tablet may have one, and says so only now
      if (event.repeat && !MAY_REPEAT.has(what)) return;
      act(what, event.shiftKey);
    });
  }

  #keep() {
    localStorage.setItem(STORED, JSON.stringify({ set: this.#set, own: this.#own }));
    this.#changed();
  }
}

/** The list of keys in the dialog, where they are changed, and the caps on the buttons of the page. */
export class KeyList {
  #keys;
  #list = document.getElementById("keys");
  #asking = null; // the action that waits for its key

  constructor(keys) {
    this.#keys = keys;
    const form = this.#list.closest("dialog");
    form.addEventListener("change", (event) => {
      if (event.target.name === "key-set") keys.choose(event.target.value);
    });
    document.getElementById("usual-keys").addEventListener("click", () => keys.choose(keys.set));
    this.#list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#ask(button.dataset.does);
    });
    form.addEventListener("keydown", (event) => this.#take(event), true);
    form.addEventListener("close", () => this.#ask(null));
    this.paint();
  }

  #ask(does) {
    this.#asking = this.#asking === does ? null : does;
    this.paint();
  }

  #take(event) {
    if (!this.#asking || MODIFIERS.has(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const does = this.#asking;
    this.#asking = null;
    if (event.key !== "Escape" && event.key !== "Backspace") this.#keys.give(does, nameOf(event));
    this.paint();
  }

  paint() {
    const focused = document.activeElement?.dataset?.does;
    this.#list.replaceChildren(...this.#keys.rows().flatMap((row) => this.#row(row)));
    this.#list.querySelector(`[data-does="${focused}"]`)?.focus();
    for (const radio of document.getElementsByName("key-set")) radio.checked = radio.value === this.#keys.set;
    document.getElementById("usual-keys").hidden = !this.#keys.changedByHand;
    for (const cap of document.querySelectorAll("kbd[data-key]")) cap.textContent = this.#keys.cap(cap.dataset.key);
    for (const button of document.querySelectorAll("button[data-title][data-key]")) {
      button.title = `${button.dataset.title} (${this.#keys.cap(button.dataset.key)})`;
    }
  }

  #row({ does, says, cap }) {
    const term = document.createElement("dt");
    const button = term.appendChild(document.createElement("button"));
    const asking = this.#asking === does;
    Object.assign(button, { type: "button", className: "key", textContent: asking ? "press a key" : cap });
    button.dataset.does = does;
    button.classList.toggle("asking", asking);
    button.setAttribute("aria-label", asking ? `Press the new key for: ${says}` : `${cap}: ${says}. Change this key`);
    const text = document.createElement("dd");
    text.textContent = says;
    return [term, text];
  }
}
