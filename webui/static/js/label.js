// Labeling: the queue of pairs, choosing, taking back. What is on screen never waits for the server.

import { Outbox, getJson } from "./outbox.js";
import { Player } from "./player.js";
import { Sheets } from "./sheets.js";
import { SAID, Strip } from "./strip.js";
import { afterFrame, fit, flash } from "./layout.js";
import { swipes } from "./swipe.js";
import { Offer } from "./offer.js";
import { Hidden, Pace } from "./pace.js";

export const SETTLE_MS = 150; // a pair that has only just appeared cannot have been judged
const HELD_MS = 450; // a finger that stays so long on a side says much better
const AHEAD = 3; // pairs whose sheets are decoded ahead
const FETCH = 100; // pairs asked for at once: only where their sheets lie, no pictures
const AGAIN_MS = 1000;
const AHEAD_AFTER_MS = 120; // decoding ahead may not delay the frame that is due now
export const SPEEDS = { quarter: 0.25, half: 0.5, full: 1 };

export class Labeling {
  #base;
  #say;
  #view = document.getElementById("label-view");
  #stage = document.getElementById("stage");
  #figures = [...this.#stage.querySelectorAll(".clip")];
  #sheets = new Sheets();
  #player;
  #batch = null; // "round-attempt"; null while there is nothing to label
  #queue = []; // pairs to label, the one on screen first
  #history = []; // pairs labeled in this tab, for undo
  #shown = null; // the pair on screen, once its first frame is drawn
  #shownAt = 0;
  #labeled = 0;
  #total = 0;
  #state = null; // the newest that we were told
  #seen = 0; // newest label row that we know of
  #others = false; // whether another tab has labeled before that one
  #more = false; // whether the server has further pairs of this batch
  #loading = 0;
  #pace = new Pace();
  #offer;
  #strip;
  #aheadTimer = null;
  #fitted = ""; // the size of the frames that there is room for
  #pressed = 0; // when a finger came down
  #changing = null; // the entry of the strip that is judged anew
  #hidden = new Hidden();

  /** say: { toast(text), speak(text), trouble(count, sentence), count(text, share) }. */
  constructor(base, state, say) {
    this.#base = base;
    this.#say = say;
    this.outbox = new Outbox(base, state, {
      saved: (item, answer) => this.#saved(item, answer),
      refused: (item, sentence) => this.#refused(sentence),
      trouble: say.trouble,
    });
    this.#player = new Player(
      this.#figures.map((figure) => figure.querySelector("canvas")),
      (frame, ended) => this.#drawn(frame, ended),
    );
    this.#strip = new Strip(base, (entry) => this.#revisit(entry), () => this.#look());
    this.#offer = new Offer(base, say);
    this.#buttons();
    swipes(this.#view, this.#stage, (choice) => this.choose(choice));
    new ResizeObserver(() => this.#fit(true)).observe(this.#stage);
    this.outbox.kick();
  }

  // ---------------------------------------------------------------- following the session

  update(state) {
    this.#state = state;
    const batch = `${state.round}-${state.attempt}`;
    if (batch !== this.#batch) {
      this.#reset(batch);
      this.#total = state.pairs;
      this.#labeled = state.labeled;
      this.#load();
    } else this.#follow();
    this.#count();
  }

  /** Another tab labels, changes its mind or takes back, too: once nothing of ours is under way, the server knows. */
  #follow() {
    if (this.#batch === null || this.outbox.items.length) return;
    const { last_label, labeled } = this.#state;
    const newer = last_label > this.#seen || (last_label === this.#seen && labeled !== this.#labeled);
    if (newer || this.#others) this.#load();
  }

  leave() {
    if (this.#batch === null) return;
    this.#reset(null);
    this.#offer.hide();
    this.#sheets.keepOnly([]);
  }

  #reset(batch) {
    this.#batch = batch;
    this.#queue = [];
    this.#history = [];
    this.#change(null);
    this.#loading += 1;
    this.#blank("");
  }

  /** Asks which pairs are left; tries until it is told, or something else is going on. */
  async #load(after = null) {
    const turn = (this.#loading += 1);
    for (;;) {
      const answer = await getJson(`${this.#base}/pairs?limit=${FETCH}${after ? `&after=${after}` : ""}`);
      if (turn !== this.#loading) return;
      if (answer && answer.last_label >= this.#seen) {
        if (`${answer.round}-${answer.attempt}` === this.#batch) this.#take(answer, after);
        return;
      }
      // no answer, or overtaken by a label that was saved meanwhile
      await new Promise((resolve) => setTimeout(resolve, answer ? 50 : AGAIN_MS));
    }
  }

  #take(answer, after) {
    const pending = this.outbox.items.filter((item) => item.batch === this.#batch);
    const labeledHere = new Set(pending.filter((item) => item.kind === "labels").map((item) => item.body.pair));
    const fresh = answer.pairs.filter((pair) => !labeledHere.has(pair.id)).map((pair) => this.#ofBatch(pair));
    this.#more = answer.pairs.length === FETCH;
    if (after) {
      const known = new Set(this.#queue.map((pair) => pair.id));
      this.#queue.push(...fresh.filter((pair) => !known.has(pair.id)));
    } else {
      this.#total = answer.total;
      this.#seen = Math.max(this.#seen, answer.last_label);
      this.#labeled = answer.labeled + answer.pairs.length - fresh.length;
      this.#others = false;
      this.#history = []; // what is taken back next is the server's to say
      const top = this.#changing?.pair ?? this.#shown;
      const waits = fresh.some((pair) => pair.id === top?.id);
      const stays = waits || this.#changing; // what is on screen goes on undisturbed
      this.#queue = stays ? [top, ...fresh.filter((pair) => pair.id !== top.id)] : fresh;
      if (waits) this.#change(null);
      this.#strip.load();
    }
    this.#show();
  }

  /** A pair with its place; one of an earlier batch brings its own. */
  #ofBatch(pair) {
    const [round, attempt] = this.#batch.split("-").map(Number);
    return { round, attempt, ...pair };
  }

  // ---------------------------------------------------------------- judging

  choose(choice, strong = false) {
    const pair = this.#shown;
    const passed = performance.now() - this.#shownAt;
    if (!pair || pair !== this.#queue[0] || passed < SETTLE_MS) return;
    const strength = strong && (choice === "left" || choice === "right") ? "strong" : "normal";
    const body = { pair: pair.id, choice, strength, ...this.#measured(passed) };
    const changed = this.#changing;
    this.#queue.shift();
    if (changed) this.#history = this.#history.filter((other) => other.id !== pair.id);
    if (!changed || `${changed.pair.round}-${changed.pair.attempt}` === this.#batch) this.#history.push(pair);
    if (!changed) {
      this.#labeled += 1;
      this.#pace.add(passed / 1000);
    }
    this.#change(null);
    this.#show();
    this.outbox.add("labels", body, { batch: this.#batch, round: pair.round });
    flash([this.#figures, this.#view.querySelector(`[data-choice=${choice}]`)], choice, strength);
    if (changed) this.#strip.add(pair, choice, strength); // its picture is there
    else
      afterFrame(() => this.#history.includes(pair) && this.#strip.add(pair, choice, strength, this.#sheets.ready(pair)));
    const said = (strength === "strong" ? "Much: " : "") + SAID[choice];
    this.#say.speak(`${said}. ${this.#queue.length ? `Pair ${this.#labeled + 1} of ${this.#total}.` : "Batch done."}`);
    if (this.#more && this.#queue.length < FETCH / 4) {
      this.#more = false;
      this.#load(this.#queue.at(-1)?.id ?? pair.id);
    }
  }

  /** How the pair was looked at, logged with its label. */
  #measured(passed) {
    const ms = (time) => Math.round(Math.min(time, 2 ** 31 - 1));
    const { loops, restarts, pauses } = this.#player;
    return { response_ms: ms(passed), replays: loops + restarts, pauses, hidden_ms: ms(this.#hidden.passed()) };
  }

  /** A pair of the strip comes back on screen, to be judged anew or left as it is. */
  #revisit(entry) {
    if (this.#batch === null) return;
    this.#keep();
    const pair = { ...entry.pair }; // another object than that of the queue, should it be there too
    this.#queue.unshift(pair);
    this.#change({ ...entry, pair });
    this.#show();
  }

  #keep() {
    if (!this.#changing) return;
    this.#queue = this.#queue.filter((pair) => pair !== this.#changing.pair);
    this.#change(null);
    this.#show();
  }

  #change(entry) {
    this.#changing = entry;
    this.#strip.mark(entry?.pair.id ?? null);
    const note = document.getElementById("change-note");
    note.hidden = !entry;
    if (!entry) return;
    const late = entry.pair.round < Number.parseInt(this.#batch, 10) ? " Counts from the next round." : "";
    note.firstElementChild.textContent = `You said: ${SAID[entry.choice].toLowerCase()}. Say it anew, or`;
    note.lastElementChild.textContent = late;
    this.#say.speak(`Pair ${entry.pair.position + 1} again. ${note.textContent}`);
  }

  undo() {
    if (this.#batch === null) return;
    if (this.#changing) {
      this.#keep();
      return;
    }
    if (!this.#history.length && !this.#labeled) {
      this.#say.toast("There is nothing to take back.");
      return;
    }
    const pair = this.#history.pop() ?? null;
    this.outbox.add("undo", {}, { batch: this.#batch, pair: pair?.id ?? null });
    if (pair) this.#again(pair);
  }

  /** A pair comes back to be labeled anew. */
  #again(pair) {
    this.#queue = [pair, ...this.#queue.filter((other) => other.id !== pair.id)];
    this.#strip.remove(pair.id);
    this.#labeled = Math.max(this.#labeled - 1, 0);
    this.#show();
    this.#say.speak(`Taken back. Pair ${this.#labeled + 1} of ${this.#total}.`);
  }

  #saved(item, answer) {
    this.#others ||= answer.label > this.#seen + 1;
    this.#seen = Math.max(this.#seen, answer.label);
    if (answer.counts_from > item.round) {
      this.#strip.late(item.body.pair);
      this.#say.toast("Saved. It counts from the next round.");
    }
    if (item.kind === "undo" && item.batch === this.#batch) {
      if (item.pair === null) this.#again(this.#ofBatch(answer.pair));
      else this.#others ||= item.pair !== answer.pair.id; // labeled there since
    }
    this.#follow();
  }

  #refused(sentence) {
    this.#say.toast(sentence);
    this.#history = [];
    if (this.#batch !== null) this.#load();
  }

  // ---------------------------------------------------------------- on screen

  #show() {
    const pair = this.#queue[0];
    this.#count();
    this.#ahead();
    if (!pair) {
      const done = this.#labeled >= this.#total && this.#total > 0;
      this.#blank(done ? "That was the last one of this batch. Undo takes it back." : "");
      return;
    }
    const sheets = this.#sheets.ready(pair);
    if (!sheets) {
      const away = this.#state?.running === false;
      this.#blank(`Loading the clips …${away ? " What is not drawn yet comes once the session goes on." : ""}`);
      this.#sheets.load(pair).then(() => this.#queue[0] === pair && this.#shown !== pair && this.#show());
      return;
    }
    if (this.#shown !== pair) {
      this.#shown = pair;
      this.#shownAt = performance.now();
      this.#hidden.begin(this.#shownAt);
      this.#note("");
      this.#stage.dataset.ready = "true";
      this.#stage.dataset.pair = pair.id;
      this.#stage.dataset.since = this.#shownAt;
      this.#scrub.max = Math.max(pair.left.frames, pair.right.frames) - 1;
      this.#fit();
      this.#player.show(pair, sheets);
      this.#playing();
    }
  }

  /** Decodes the next pairs, and frees what is no longer needed: between frames, not before the one that is due. */
  #ahead() {
    clearTimeout(this.#aheadTimer);
    this.#aheadTimer = setTimeout(() => {
      const soon = this.#queue.slice(0, AHEAD + 1);
      this.#sheets.keepOnly([...soon, ...this.#history.slice(-1)]);
      for (const next of soon) this.#sheets.load(next);
    }, this.#shown ? AHEAD_AFTER_MS : 0);
  }

  #blank(note) {
    this.#shown = null;
    this.#stage.dataset.ready = "false";
    delete this.#stage.dataset.pair;
    this.#note(note);
    this.#player?.clear();
  }

  #note(text) {
    document.getElementById("stage-note").textContent = text;
  }

  #drawn(frame, ended) {
    this.#figures.forEach((figure, i) => figure.classList.toggle("ended", ended[i]));
    this.#scrub.value = frame;
  }

  /** Measuring costs a layout: only for another room or another size of frames. */
  #fit(always = false) {
    const pair = this.#shown;
    if (!pair) {
      this.#fitted = ""; // there may be less room for the next one
      return;
    }
    const [width, height] = ["width", "height"].map((d) => Math.max(pair.left[d], pair.right[d]));
    if (!always && this.#fitted === `${width}x${height}`) return;
    this.#fitted = `${width}x${height}`;
    fit(this.#stage, this.#figures, width, height);
  }

  #count() {
    if (this.#batch === null) return;
    if (this.#changing) {
      this.#say.count(["changing a label"], this.#labeled / Math.max(this.#total, 1));
      return;
    }
    this.#say.count(this.#pace.line(this.#labeled, this.#total), this.#total ? this.#labeled / this.#total : 0);
  }

  /** Whether other clips should be offered. */
  #look() {
    if (this.#batch === null || this.#changing) this.#offer.hide();
    else this.#offer.look(this.#batch, this.#total, this.#labeled, this.#strip.choices(this.#batch));
  }

  // ---------------------------------------------------------------- playback and buttons

  get #scrub() {
    return document.getElementById("scrub");
  }

  /** Does what a key means. */
  act(what, strong) {
    if (what in SAID) this.choose(what, strong);
    else if (what === "undo") this.undo();
    else if (what === "keep") this.#keep();
    else if (what === "play") this.#player.toggle();
    else if (what === "back") this.#player.step(-1);
    else if (what === "on") this.#player.step(1);
    else if (what === "restart") this.#player.restart();
    else if (what in SPEEDS) this.#player.speed = SPEEDS[what];
    this.#playing();
  }

  #playing() {
    const play = document.getElementById("play");
    play.classList.toggle("playing", this.#player.playing);
    play.setAttribute("aria-label", this.#player.playing ? "Pause" : "Play");
    for (const button of this.#view.querySelectorAll("[data-speed]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.speed) === this.#player.speed));
    }
  }

  #buttons() {
    this.#view.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (event.detail) button.blur(); // clicked, not pressed: Space shall pause, not choose again
      const held = event.timeStamp - this.#pressed > HELD_MS && event.pointerType === "touch";
      if (button.dataset.choice && event.detail > 1) return; // a double click is one judgement
      if (button.dataset.choice) this.choose(button.dataset.choice, event.shiftKey || held);
      else if (button.id === "undo") this.undo();
      else if (button.id === "play") this.act("play");
      else if (button.dataset.speed) this.#player.speed = Number(button.dataset.speed);
      this.#playing();
    });
    this.#view.addEventListener("pointerdown", (event) => (this.#pressed = event.timeStamp));
    this.#view.addEventListener("animationend", (event) => event.target.classList.remove("flash", "strong"));
    this.#scrub.addEventListener("input", () => {
      this.#player.pause();
      this.#player.seek(Number(this.#scrub.value));
      this.#playing();
    });
    this.#scrub.addEventListener("change", () => this.#scrub.blur());
    document.getElementById("keep").addEventListener("click", () => this.#keep());
  }
}
