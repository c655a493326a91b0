// Two rounds side by side, in lock-step: the untrained agent and the newest, until the person chooses others.

import { Together, connectDeck } from "./together.js";
import { Trace } from "./trace.js";
import { facts } from "./tile.js";

const $ = (id) => document.getElementById(id);

export class Compare {
  #rounds = [];
  #scale = [0, 0];
  #scrub = $("compare-scrub");
  #together = new Together((time) => this.#tick(time));
  #paint = connectDeck($("compare-deck"), this.#together);
  #sides = ["compare-left", "compare-right"].map((id) => this.#connect($(id)));
  #inView = false;
  #awake = false;

  constructor() {
    this.#scrub.addEventListener("input", () => this.#seek(Number(this.#scrub.value)));
    new IntersectionObserver(([entry]) => {
      this.#inView = entry.isIntersecting;
      this.#wake();
    }).observe($("compare"));
  }

  /** rounds: those with a video, oldest first. */
  show(rounds, scale) {
    const [left, right] = this.#sides;
    this.#rounds = rounds;
    this.#scale = scale;
    $("compare").hidden = rounds.length < 2;
    if (rounds.length < 2) return;
    if (!left.chosen) left.round = rounds[0].round;
    if (!right.chosen) right.round = rounds.at(-1).round;
    for (const side of this.#sides) this.#show(side);
    this.#awake = true;
    this.#wake();
  }

  leave() {
    this.#awake = false;
    this.#wake();
  }

  #wake() {
    const on = this.#awake && this.#inView;
    for (const { video, round } of on ? this.#sides : []) {
      const { url } = this.#rounds.find((r) => r.round === round);
      if (video.getAttribute("src") !== url) video.src = url;
      this.#together.add(video);
    }
    if (on) this.#together.wake();
    else this.#together.sleep();
  }

  #connect(figure) {
    const [video, range] = [figure.querySelector("video"), figure.querySelector("input")];
    const side = { figure, video, range, round: null, chosen: false, trace: new Trace((time) => this.#seek(time)) };
    video.after(side.trace.node);
    video.addEventListener("loadedmetadata", () => {
      side.trace.length(video.duration);
      this.#scrub.max = this.#together.length;
    });
    range.addEventListener("input", () => {
      side.chosen = true;
      side.round = this.#rounds[range.value].round;
      this.#show(side);
      this.#wake();
    });
    return side;
  }

  #show({ figure, video, range, trace, round }) {
    const index = Math.max(this.#rounds.findIndex((r) => r.round === round), 0);
    const shown = this.#rounds[index];
    range.max = this.#rounds.length - 1;
    range.value = index;
    range.setAttribute("aria-valuetext", shown.title);
    const [title, , words] = figure.querySelector("figcaption").children;
    title.textContent = shown.star ? `${shown.title} ★` : shown.title;
    words.textContent = facts(shown);
    video.setAttribute("aria-label", `The agent, ${shown.title}`);
    trace.show({ values: shown.predicted, fps: shown.fps, scale: this.#scale, name: shown.title });
  }

  #seek(time) {
    this.#together.pause();
    this.#paint();
    this.#together.seek(time);
  }

  #tick(time) {
    this.#scrub.value = time;
    this.#scrub.setAttribute("aria-valuetext", `${time.toFixed(1)} s`);
    for (const { trace, video } of this.#sides) trace.time(Math.min(time, video.duration || 0));
  }
}
