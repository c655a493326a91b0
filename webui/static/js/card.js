// One pair among the labels: a card with both clips' pictures, what the person said, and what the model would have said.

import { SAID, fetchPicture } from "./strip.js";

const SIGNS = { left: "←", right: "→", equal: "=", skip: "?" };
const TALLEST = 240; // of a card's picture in pixels
const AT_ONCE = 2; // sheets that are fetched and decoded at a time: one may take 50 MB

// ---------------------------------------------------------------------------------------------- in words

export function title({ round, attempt, position }) {
  return `Round ${round}${attempt ? `, batch ${attempt + 1}` : ""} · pair ${position + 1}`;
}

/** stacked: the clips stand one above the other. */
export function said({ choice, strength }, stacked = false) {
  if (choice === null) return "Not labeled";
  const words = strength === "strong" ? SAID[choice].replace("better", "much better") : SAID[choice];
  return stacked ? words.replace("Left", "Upper").replace("Right", "Lower") : words;
}

/** What the model makes of the label: { text, tone }, tone being agrees, differs, slip or none. */
export function opinion({ p_left, p_said, slip }, stacked = false) {
  if (p_left === null) return { text: "the model was not asked", tone: "none" };
  const left = p_left >= 0.5;
  const side = stacked ? (left ? "upper" : "lower") : left ? "left" : "right";
  const sure = percent(left ? p_left : 1 - p_left);
  if (p_said === null) return { text: `the model leans to ${side}, ${sure}`, tone: "agrees" };
  if (p_said >= 0.5) return { text: `the model agrees, ${percent(p_said)}`, tone: "agrees" };
  return { text: `the model would have said ${side}, ${sure}`, tone: slip ? "slip" : "differs" };
}

/** Never surer than the model can be. */
function percent(p) {
  return p > 0.99 ? "over 99\u00a0%" : `${Math.round(100 * p)}\u00a0%`;
}

// ---------------------------------------------------------------------------------------------- the card

export class Card {
  item = document.createElement("li");
  #button = this.item.appendChild(document.createElement("button"));
  #canvases;
  #sign;
  #lines;

  constructor(pair) {
    this.pair = pair;
    this.#button.type = "button";
    const frames = this.#button.appendChild(element("span", "frames"));
    this.#canvases = ["left", "right"].map((side) => {
      const frame = frames.appendChild(element("span", "frame"));
      frame.dataset.side = side;
      const canvas = frame.appendChild(document.createElement("canvas"));
      canvas.style.aspectRatio = pair[side].url ? `${pair[side].width} / ${pair[side].height}` : "3 / 2";
      canvas.width = canvas.height = 0;
      return canvas;
    });
    frames.classList.toggle("bare", !pair.left.url && !pair.right.url);
    this.#sign = frames.appendChild(element("span", "sign"));
    this.#lines = ["where", "said", "model"].map((name) => this.#button.appendChild(element("span", name)));
    this.paint();
  }

  focus() {
    this.#button.focus();
  }

  paint() {
    const { pair } = this;
    const { text, tone } = opinion(pair);
    const aside = pair.late ? "counts from the next round" : pair.counts ? "" : "no longer counts";
    this.#button.dataset.pair = pair.id;
    this.#button.dataset.choice = pair.choice ?? "none";
    this.#button.dataset.tone = tone;
    this.#button.classList.toggle("aside", !pair.counts);
    this.#sign.textContent = pair.choice ? SIGNS[pair.choice].repeat(pair.strength === "strong" ? 2 : 1) : "";
    [title(pair), said(pair) + (aside && ` · ${aside}`), text].forEach((line, i) => (this.#lines[i].textContent = line));
    this.#button.setAttribute("aria-label", `${title(pair)}: ${said(pair)}${aside && `, ${aside}`}; ${text}. Look again`);
  }

  /** Draws a still of each clip: one frame of its sheet, and only that is kept. */
  async draw() {
    const clips = [this.pair.left, this.pair.right];
    for (const [i, clip] of clips.entries()) {
      const canvas = this.#canvases[i];
      if (!clip.url || canvas.width) continue;
      canvas.height = Math.min(clip.height, TALLEST);
      canvas.width = Math.round((canvas.height * clip.width) / clip.height);
      if (!(await fetchPicture(canvas, clip))) canvas.width = canvas.height = 0; // later, perhaps
    }
  }

  /** Forgets its pictures. */
  drop() {
    for (const canvas of this.#canvases) canvas.width = canvas.height = 0;
  }
}

function element(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  if (name === "sign") made.ariaHidden = "true";
  return made;
}

// ---------------------------------------------------------------------------------------------- their pictures

/** Draws the cards that are in view or close to it, and forgets the pictures of the others. */
export class Pictures {
  #cards = new Map(); // item -> card
  #wanted = new Set(); // cards that wait for their pictures, in the order they came into view
  #busy = 0;
  #observer;

  constructor(scroller) {
    this.#observer = new IntersectionObserver((entries) => this.#seen(entries), { root: scroller, rootMargin: "400px" });
  }

  /** These cards and no others. */
  follow(cards) {
    const items = new Set(cards.map((card) => card.item));
    for (const [item, card] of this.#cards) {
      if (items.has(item)) continue;
      this.#observer.unobserve(item);
      this.#wanted.delete(card);
      this.#cards.delete(item);
    }
    for (const card of cards) {
      if (this.#cards.has(card.item)) continue;
      this.#cards.set(card.item, card);
      this.#observer.observe(card.item);
    }
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      const card = this.#cards.get(target);
      if (!card) continue;
      if (isIntersecting) {
        this.#wanted.add(card);
      } else {
        this.#wanted.delete(card);
        card.drop();
      }
    }
    while (this.#busy < AT_ONCE && this.#wanted.size) this.#work();
  }

  async #work() {
    this.#busy += 1;
    for (const card of this.#wanted) {
      this.#wanted.delete(card);
      await card.draw();
    }
    this.#busy -= 1;
  }
}
