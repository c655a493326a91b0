// Every label given so far, the likely slips first: a grid of pairs, each of which can be looked at and judged again.

import { Card, Pictures } from "./card.js";
import { getJson } from "./outbox.js";
import { Replay } from "./replay.js";

const PAGE = 24; // pairs
const MOST = 100; // that the server gives at once
const AGAIN_MS = 1000; // also: so often at most the list follows what the server has learned

const $ = (id) => document.getElementById(id);

export class Browser {
  #base;
  #outbox;
  #replay;
  #pictures = new Pictures($("watch-view"));
  #cards = new Map(); // pair id -> card, in the order of the list
  #changed = new Set(); // pairs judged anew since the list came: they may have left their places on the server
  #total = 0;
  #slipBelow = 0;
  #judge = null; // the round of the reward model
  #turn = 0;
  #stamp = null; // what the list depends on, as far as the session's state tells
  #seen = 0; // newest label row that we know of
  #due = null; // a timer, while the list is to be read anew

  /** hands: { keys, outbox } of the labeling page, through which a label goes like any other. */
  constructor(base, { keys, outbox }) {
    this.#base = base;
    this.#outbox = outbox;
    outbox.listen({
      saved: (item, answer) => this.#saved(item, answer),
      refused: () => this.#soon(),
    });
    this.#replay = new Replay(keys, {
      step: (card, by) => this.#step(card, by),
      judge: (card, choice, strength) => this.#anew(card, choice, strength),
    });
    $("labels-filters").addEventListener("change", () => this.#load(PAGE));
    $("labels-filters").addEventListener("submit", (event) => event.preventDefault());
    $("labels-more").addEventListener("click", () => this.#more(true));
    $("labels-list").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#replay.open(this.#cards.get(Number(button.dataset.pair)));
    });
  }

  show(state) {
    const { round, attempt, phase, view, goal, trained, progress } = state;
    const stamp = JSON.stringify([round, attempt, phase, view, goal, trained.length, progress?.phase]);
    if (stamp === this.#stamp && state.last_label <= this.#seen) return;
    this.#seen = Math.max(this.#seen, state.last_label);
    const first = this.#stamp === null;
    this.#stamp = stamp;
    if (first) this.#load(Math.max(this.#cards.size, PAGE));
    else this.#soon();
  }

  /** The list is out of sight: once it is back, it is read anew. A pair that is being looked at stays. */
  leave() {
    this.#stamp = null;
    this.#turn += 1;
    clearTimeout(this.#due);
    this.#due = null;
  }

  // ---------------------------------------------------------------- the list

  /** Reads the list anew in a moment, but never under the eyes of someone who looks at one of its pairs. */
  #soon() {
    this.#due ??= setTimeout(() => {
      this.#due = null;
      if (this.#replay.shown) this.#soon();
      else if (this.#stamp !== null) this.#load(Math.max(this.#cards.size, PAGE));
    }, AGAIN_MS);
  }

  /** The first pairs of the list, as it is now. */
  async #load(count) {
    const turn = (this.#turn += 1);
    const pairs = [];
    let answer;
    do {
      answer = await this.#ask(pairs.length, Math.min(count - pairs.length, MOST), turn);
      if (turn !== this.#turn) return;
      pairs.push(...answer.pairs);
    } while (answer.pairs.length && pairs.length < Math.min(count, answer.total));
    this.#changed.clear();
    this.#take(answer, pairs, new Map());
  }

  /** The next pairs of the list. */
  async #more(focus) {
    const turn = (this.#turn += 1);
    const gone = Math.min(this.#changed.size, this.#cards.size, MOST - PAGE);
    const answer = await this.#ask(this.#cards.size - gone, PAGE + gone, turn);
    if (turn !== this.#turn) return;
    const before = new Map(this.#cards);
    const fresh = answer.pairs.filter((pair) => !before.has(pair.id));
    this.#take(answer, fresh, before);
    if (focus && fresh.length) this.#cards.get(fresh[0].id).focus();
  }

  /** Tries until the server answers, or something else is asked. */
  async #ask(offset, limit, turn) {
    const query = new URLSearchParams({ offset, limit });
    for (const [name, value] of new FormData($("labels-filters"))) if (value) query.set(name, value);
    for (;;) {
      const answer = await getJson(`${this.#base}/history?${query}`);
      if (answer || turn !== this.#turn) return answer;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  #take(answer, pairs, cards) {
    this.#total = answer.total;
    this.#slipBelow = answer.slip_below;
    const learned = answer.judge !== this.#judge; // what came late has had its turn
    this.#judge = answer.judge;
    for (const pair of pairs) {
      const card = this.#cards.get(pair.id) ?? new Card(pair);
      card.pair = { ...pair, late: !learned && card.pair.late };
      cards.set(pair.id, card);
    }
    this.#cards = cards;
    for (const { body, kind } of this.#outbox.items) {
      const card = kind === "labels" && cards.get(body.pair);
      if (card) this.#say(card, body.choice, body.strength); // under way to the server
    }
    this.#paint(answer);
  }

  #paint({ rounds, slips }) {
    const cards = [...this.#cards.values()];
    const list = $("labels-list");
    for (const card of cards) card.paint();
    const items = cards.map((card) => card.item);
    if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) {
      const focused = list.contains(document.activeElement) ? document.activeElement : null;
      list.replaceChildren(...items);
      focused?.focus();
    }
    this.#pictures.follow(cards);
    $("labels").hidden = !rounds.length;
    $("labels-none").hidden = this.#total > 0;
    $("labels-count").textContent = [count(this.#total, "pair"), slips && count(slips, "likely slip")].filter(Boolean).join(" · ");
    const left = Math.max(this.#total - cards.length, 0);
    $("labels-more").hidden = !left;
    $("labels-more").textContent = `Show ${Math.min(left, PAGE)} more of ${left}`;
    this.#rounds(rounds);
  }

  #rounds(rounds) {
    const select = $("labels-filters").elements.round;
    const [all, ...before] = select.options;
    if (before.map((option) => Number(option.value)).join() === rounds.join()) return;
    const chosen = select.value;
    select.replaceChildren(all, ...rounds.map((round) => new Option(String(round), round)));
    select.value = rounds.includes(Number(chosen)) ? chosen : "";
  }

  // ---------------------------------------------------------------- looking at one, judging it anew

  /** The card before or after this one; null at either end. */
  async #step(card, by) {
    const at = () => [...this.#cards.keys()].indexOf(card.pair.id);
    if (at() + by >= this.#cards.size && this.#cards.size < this.#total) await this.#more(false);
    return [...this.#cards.values()][at() + by] ?? null;
  }

  #anew(card, choice, strength) {
    const { id, round, attempt } = card.pair;
    this.#changed.add(id);
    this.#say(card, choice, strength);
    card.pair.labeled = Date.now() / 1000;
    card.paint();
    // how long one looked is not sent: with the model's opinion beside it, that is no response time
    this.#outbox.add("labels", { pair: id, choice, strength }, { batch: `${round}-${attempt}`, round });
  }

  /** What the person says now, and what the model makes of it. */
  #say(card, choice, strength) {
    const { p_left } = card.pair;
    const p_said = p_left === null ? null : ({ left: p_left, right: 1 - p_left }[choice] ?? null);
    const slip = p_said !== null && p_said < this.#slipBelow;
    card.pair = { ...card.pair, choice, strength, p_said, slip, counts: true, response_ms: null };
  }

  #saved(item, answer) {
    this.#seen = Math.max(this.#seen, answer.label);
    const card = item.kind === "labels" && this.#cards.get(item.body.pair);
    if (!card) return;
    card.pair.late = answer.counts_from > card.pair.round;
    card.paint();
    this.#replay.repaint(card);
  }
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
