// A pair of the past, played again: what was said, what the model would have said, and a way to say it anew.

import { opinion, said, title } from "./card.js";
import { SETTLE_MS, SPEEDS } from "./label.js";
import { fit } from "./layout.js";
import { Player } from "./player.js";
import { Sheets } from "./sheets.js";
import { SAID } from "./strip.js";

const ACTS = new Set([...Object.keys(SAID), ...Object.keys(SPEEDS), "undo", "play", "back", "on", "restart", "previous", "next"]);
const KINDS = {
  uniform: "Chosen at random.",
  disagreement: "Chosen because the models disagreed.",
  different: "Chosen because the clips differ much.",
  repeat: "An earlier pair again, its sides swapped.",
};

export class Replay {
  #keys;
  #list;
  #dialog = null; // made when it is first opened
  #figures;
  #player;
  #sheets = new Sheets();
  #card = null;
  #shownAt = 0;
  #before = null; // { choice, strength } that was changed last
  #voices = []; // what the page says beside the dialog, while that is open in it

  /** list: step(card, by) resolves to a neighbour or null, judge(card, choice, strength). */
  constructor(keys, list) {
    this.#keys = keys;
    this.#list = list;
  }

  /** Whether a pair is on screen. */
  get shown() {
    return this.#card !== null;
  }

  open(card) {
    if (!card) return;
    if (!this.#dialog) this.#make();
    for (const cap of this.#all("kbd[data-key]")) cap.textContent = this.#keys.cap(cap.dataset.key);
    for (const button of this.#all("[data-title]")) {
      button.title = `${button.dataset.title} (${this.#keys.cap(button.dataset.act)})`;
    }
    this.#dialog.showModal();
    // a modal dialog covers the page: what the page has to say it says in here
    this.#voices = ["toast", "trouble"].map((id) => document.getElementById(id));
    this.#dialog.append(...this.#voices);
    this.#show(card);
  }

  close() {
    this.#dialog?.close();
  }

  /** The card's label was saved. */
  repaint(card) {
    if (card === this.#card) this.#words();
  }

  // ---------------------------------------------------------------- on screen

  async #show(card) {
    this.#card = card;
    this.#before = null;
    this.#shownAt = Infinity;
    const { pair } = card;
    const stage = this.#one(".stage");
    stage.dataset.ready = "false";
    this.#player.clear();
    this.#one("#replay-title").textContent = title(pair);
    this.#words();
    this.#dialog.focus();
    if (!pair.left.url || !pair.right.url) {
      this.#one(".stage-note").textContent = "These clips have no picture: nothing was drawn.";
      this.#sheets.keepOnly([]);
      this.#shownAt = performance.now();
      return;
    }
    this.#one(".stage-note").textContent = "Loading the clips …";
    this.#sheets.keepOnly([pair]);
    const sheets = await this.#sheets.load(pair);
    if (this.#card !== card || !sheets.every(Boolean)) return;
    this.#one(".stage-note").textContent = "";
    stage.dataset.ready = "true";
    this.#one(".scrub").max = Math.max(pair.left.frames, pair.right.frames) - 1;
    this.#fit();
    this.#player.show(pair, sheets);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.#player.pause();
    this.#playing();
    this.#shownAt = performance.now();
  }

  #fit() {
    const pair = this.#card?.pair;
    if (!pair || this.#one(".stage").dataset.ready !== "true") return;
    const [width, height] = ["width", "height"].map((d) => Math.max(pair.left[d], pair.right[d]));
    fit(this.#one(".stage"), this.#figures, width, height);
    this.#words(); // left and right, or upper and lower
  }

  #words() {
    const { pair } = this.#card;
    const stacked = this.#dialog.classList.contains("stacked");
    const { text, tone } = opinion(pair, stacked);
    this.#one(".said").textContent = said(pair, stacked);
    this.#one(".since").textContent = since(pair);
    this.#one("[data-act=undo]").hidden = !this.#before;
    this.#one(".model").textContent = `${text[0].toUpperCase()}${text.slice(1)}.`;
    this.#one(".model").dataset.tone = tone;
    this.#one(".why").textContent = [learned(pair), KINDS[pair.kind]].filter(Boolean).join(" ");
    for (const button of this.#all("[data-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === pair.choice));
    }
    this.#figures.forEach((figure) => figure.classList.toggle("chosen", figure.dataset.side === pair.choice));
  }

  #drawn(frame, ended) {
    this.#figures.forEach((figure, i) => figure.classList.toggle("ended", ended[i]));
    this.#one(".scrub").value = frame;
  }

  #playing() {
    this.#one(".play").classList.toggle("playing", this.#player.playing);
    this.#one(".play").setAttribute("aria-label", this.#player.playing ? "Pause" : "Play");
    for (const button of this.#all(".speeds button")) {
      button.setAttribute("aria-pressed", String(SPEEDS[button.dataset.act] === this.#player.speed));
    }
  }

  // ---------------------------------------------------------------- keys and buttons

  #act(what, strong) {
    if (what in SAID) this.#choose(what, strong && (what === "left" || what === "right") ? "strong" : "normal");
    else if (what === "undo") this.#putBack();
    else if (what === "previous") this.#step(-1);
    else if (what === "next") this.#step(1);
    else if (what === "play") this.#player.toggle();
    else if (what === "back") this.#player.step(-1);
    else if (what === "on") this.#player.step(1);
    else if (what === "restart") this.#player.restart();
    else if (what in SPEEDS) this.#player.speed = SPEEDS[what];
    this.#playing();
  }

  #choose(choice, strength) {
    const { pair } = this.#card;
    if (performance.now() - this.#shownAt < SETTLE_MS) return; // only just on screen: meant for the pair before
    if (pair.choice === choice && pair.strength === strength && pair.counts) return;
    const before = pair.choice && { choice: pair.choice, strength: pair.strength };
    this.#list.judge(this.#card, choice, strength);
    this.#before = before;
    this.#words();
  }

  #putBack() {
    if (!this.#before) return;
    const { choice, strength } = this.#before;
    this.#list.judge(this.#card, choice, strength);
    this.#before = null;
    this.#words();
    this.#dialog.focus();
  }

  async #step(by) {
    const from = this.#card;
    const card = await this.#list.step(from, by);
    if (card && this.#card === from) this.#show(card);
  }

  #make() {
    const app = document.getElementById("app");
    app.append(document.getElementById("replay-template").content.cloneNode(true));
    this.#dialog = document.getElementById("replay");
    this.#figures = [...this.#all(".clip")];
    const canvases = this.#figures.map((figure) => figure.querySelector("canvas"));
    this.#player = new Player(canvases, (frame, ended) => this.#drawn(frame, ended));
    this.#keys.listen((what, strong) => this.#act(what, strong), (what) => ACTS.has(what), this.#dialog);
    this.#dialog.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (event.target === this.#dialog || button?.dataset.act === "close") this.close();
      else if (button) this.#act(button.dataset.choice ?? button.dataset.act, event.shiftKey);
      if (event.detail) this.#dialog.focus(); // clicked, not pressed: Space shall pause, not choose again
    });
    this.#dialog.addEventListener("close", () => {
      const card = this.#card;
      this.#card = null;
      this.#player.clear();
      this.#sheets.keepOnly([]);
      app.append(...this.#voices);
      card.focus(); // of the pair that was looked at last
    });
    const scrub = this.#one(".scrub");
    scrub.addEventListener("input", () => {
      this.#player.pause();
      this.#player.seek(Number(scrub.value));
      this.#playing();
    });
    scrub.addEventListener("change", () => this.#dialog.focus());
    new ResizeObserver(() => this.#fit()).observe(this.#one(".stage"));
  }

  #one(selector) {
    return this.#dialog.querySelector(selector);
  }

  #all(selector) {
    return this.#dialog.querySelectorAll(selector);
  }
}

function since({ choice, labeled, response_ms, late, counts }) {
  if (choice === null) return "";
  const when = labeled && new Date(labeled * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const parts = [when, response_ms && `after ${(response_ms / 1000).toFixed(1)} s`];
  parts.push(late ? "counts from the next round" : !counts && "no longer counts");
  return parts.filter(Boolean).join(" · ");
}

/** Whether the model that was asked had the label to learn from. */
function learned({ p_left, members }) {
  if (p_left === null) return "";
  return members ? "It had not learned from this label." : "It has learned from this label.";
}
