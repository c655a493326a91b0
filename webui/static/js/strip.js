// The last ten judgements as small pictures; a click brings a pair back to be judged anew.

import { getJson } from "./outbox.js";

const LENGTH = 10;
const HEIGHT = 64; // of a thumbnail's picture in pixels: twice what is shown
const MOMENT = 0.6; // of the clip: by then something has happened
export const SAID = { left: "Left better", right: "Right better", equal: "Equal", skip: "Can’t tell" };
const SIGNS = { left: "←", right: "→", equal: "=", skip: "?" };

export class Strip {
  #base;
  #list = document.getElementById("strip");
  #entries = new Map(); // pair id -> { pair, choice, strength, item }, oldest first
  #touched = new Set(); // pairs judged or taken back here since the server was asked
  #turn = 0;
  #changed;

  /** revisit(entry) is called with the one that was clicked, changed() whenever a judgement has come or gone. */
  constructor(base, revisit, changed = () => {}) {
    this.#base = base;
    this.#changed = changed;
    this.#list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      const entry = button && this.#entries.get(Number(button.dataset.pair));
      if (!entry) return;
      if (event.detail) button.blur(); // clicked, not pressed: the next key is a judgement
      revisit(entry);
    });
  }

  /** What the server knows, with what was done here meanwhile. */
  async load() {
    const turn = (this.#turn += 1);
    this.#touched.clear();
    const pairs = await getJson(`${this.#base}/labels?limit=${LENGTH}`);
    if (!pairs || turn !== this.#turn) return;
    const here = [...this.#entries.values()].filter(({ pair }) => this.#touched.has(pair.id));
    const before = this.#entries;
    this.#entries = new Map();
    for (const pair of pairs.filter(({ id }) => !this.#touched.has(id))) {
      const { choice, strength } = pair;
      const entry = { pair, choice, strength, late: false, item: before.get(pair.id)?.item ?? this.#draw(pair) };
      this.#entries.set(pair.id, entry);
    }
    for (const entry of here) this.#entries.set(entry.pair.id, entry);
    this.#paint();
  }

  /** A pair has been judged; sheets: its decoded pictures, if they are at hand. */
  add(pair, choice, strength, sheets) {
    this.#touched.add(pair.id);
    const item = this.#entries.get(pair.id)?.item ?? this.#draw(pair, sheets);
    this.#entries.delete(pair.id);
    this.#entries.set(pair.id, { pair, choice, strength, late: false, item });
    this.#paint();
  }

  remove(id) {
    this.#touched.add(id);
    if (this.#entries.delete(id)) this.#paint();
  }

  /** What was said of the pairs of a batch ("round-attempt"), oldest first. */
  choices(batch) {
    const mine = [...this.#entries.values()].filter(({ pair }) => `${pair.round}-${pair.attempt}` === batch);
    return mine.map((entry) => entry.choice);
  }

  /** The label came after its round was trained. */
  late(id) {
    const entry = this.#entries.get(id);
    if (!entry) return;
    entry.late = true;
    this.#paint();
  }

  /** Marks the pair that is being changed; null: none. */
  mark(id) {
    for (const { pair, item } of this.#entries.values()) {
      item.firstElementChild.ariaCurrent = pair.id === id ? "true" : null;
    }
  }

  #paint() {
    this.#changed();
    for (const id of [...this.#entries.keys()].slice(0, -LENGTH)) this.#entries.delete(id);
    for (const { choice, strength, late, item, pair } of this.#entries.values()) {
      const said = (strength === "strong" ? "much " : "") + SAID[choice].toLowerCase() + (late ? ", counts from the next round" : "");
      const button = item.firstElementChild;
      button.dataset.choice = choice;
      button.classList.toggle("late", late);
      button.title = `${said[0].toUpperCase()}${said.slice(1)}. Click to change it`;
      button.setAttribute("aria-label", `Pair ${pair.position + 1}: ${said}. Change it`);
      button.lastElementChild.textContent = SIGNS[choice].repeat(strength === "strong" ? 2 : 1);
    }
    const items = [...this.#entries.values()].map((entry) => entry.item);
    const children = this.#list.children;
    if (items.length === children.length && items.every((item, i) => item === children[i])) return;
    this.#list.replaceChildren(...items);
  }

  #draw(pair, sheets) {
    const item = document.createElement("li");
    const button = item.appendChild(document.createElement("button"));
    button.type = "button";
    button.dataset.pair = pair.id;
    [pair.left, pair.right].forEach((clip, i) => {
      const canvas = button.appendChild(document.createElement("canvas"));
      canvas.height = HEIGHT;
      canvas.width = Math.round((HEIGHT * clip.width) / clip.height);
      if (sheets) picture(canvas, clip, sheets[i]);
      else fetchPicture(canvas, clip);
    });
    button.appendChild(document.createElement("span")).ariaHidden = "true";
    return item;
  }
}

function place(clip) {
  const i = Math.floor((clip.frames - 1) * MOMENT);
  return [(i % clip.columns) * clip.width, Math.floor(i / clip.columns) * clip.height];
}

function picture(canvas, clip, sheet) {
  canvas.getContext("2d").drawImage(sheet, ...place(clip), clip.width, clip.height, 0, 0, canvas.width, canvas.height);
}

/** After a reload: the sheet lies in the browser's cache; only one frame of it is kept. Whether that is drawn now. */
export async function fetchPicture(canvas, clip) {
  if (!clip.url) return false;
  try {
    const answer = await fetch(clip.url, { priority: "low" });
    if (answer.status !== 200) return false;
    const frame = await createImageBitmap(await answer.blob(), ...place(clip), clip.width, clip.height);
    canvas.getContext("2d").drawImage(frame, 0, 0, canvas.width, canvas.height);
    frame.close();
    return true;
  } catch {
    return false; // without its picture it still says what was judged
  }
}
