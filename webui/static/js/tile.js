// One round on the wall: its video, the predicted reward under it, and what is known of it.

import { number, roundName } from "./format.js";
import { seekTo } from "./together.js";
import { Trace } from "./trace.js";

export class Tile {
  node = document.createElement("li");
  video = document.createElement("video");
  trace;
  #title = document.createElement("b");
  #origin = document.createElement("span");
  #facts = document.createElement("p");
  #url = "";

  /** onSeek(seconds): the person went to a moment of this video. */
  constructor(number, onSeek) {
    this.node.className = "tile";
    this.node.dataset.round = number;
    Object.assign(this.video, { muted: true, playsInline: true, preload: "auto", disableRemotePlayback: true });
    this.trace = new Trace((time) => {
      onSeek(time);
      if (this.loaded) seekTo(this.video, time);
    });
    this.video.addEventListener("timeupdate", () => this.video.seeking || this.trace.time(this.video.currentTime));
    this.video.addEventListener("loadedmetadata", () => this.trace.length(this.video.duration));
    const head = document.createElement("div");
    const actions = document.createElement("span");
    head.className = "tile-head";
    this.#origin.className = "chip";
    actions.className = "tile-actions"; // buttons of the round go here
    actions.dataset.round = number;
    head.append(this.#title, this.#origin, actions);
    this.#facts.className = "quiet";
    this.node.append(this.video, this.trace.node, head, this.#facts);
  }

  /** In place: a video that plays goes on. */
  show(round, scale) {
    this.#title.textContent = round.title;
    this.#origin.textContent = round.practice ? "trained longer" : origin(round);
    this.#origin.hidden = !this.#origin.textContent;
    this.#facts.textContent = facts(round);
    this.video.setAttribute("aria-label", `The agent, ${round.title}`);
    this.trace.show({ values: round.predicted, fps: round.fps, scale, name: round.title });
    if (this.#url === round.url) return;
    this.#url = round.url;
    if (this.loaded) this.video.src = round.url;
  }

  get loaded() {
    return this.video.hasAttribute("src");
  }

  load() {
    if (!this.loaded) this.video.src = this.#url;
  }

  /** A browser has only so many video decoders. */
  unload() {
    if (!this.loaded) return;
    this.video.removeAttribute("src");
    this.video.load();
  }
}

function origin(round) {
  if (round.from === null || round.from === round.round - 1) return "";
  return `from ${round.from < 0 ? "the untrained" : roundName(round.from)}`;
}

export function facts(round) {
  const words = [];
  if (round.mean_return !== null) words.push(`true return ${number(round.mean_return)}`);
  if (round.mean_return !== null && round.std) words[0] += ` ± ${number(round.std)}`;
  const frames = (round.predicted ?? round.true)?.length;
  if (round.ended && frames && round.fps) words.push(`over after ${(frames / round.fps).toFixed(1)} s`);
  return words.join(" · ");
}
