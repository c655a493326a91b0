// The predicted reward along a video, small: a line, where the video is, and the moment that the model likes best.
// It is the video's time line as well: click, drag or use the arrow keys to go to a moment.

import { number } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const KEYS = { ArrowRight: 0.1, ArrowUp: 0.1, ArrowLeft: -0.1, ArrowDown: -0.1, PageUp: 1, PageDown: -1 }; // seconds

export class Trace {
  node = document.createElement("div");
  #line = document.createElementNS(SVG, "polyline");
  #zero = document.createElementNS(SVG, "line");
  #peak = document.createElement("i");
  #reading = document.createElement("span");
  #values = [];
  #fps = null;
  #duration = 0;
  #time = 0;
  #onSeek;

  /** onSeek(seconds): the person wants to see that moment. */
  constructor(onSeek) {
    this.#onSeek = onSeek;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.append(this.#zero, this.#line);
    this.#zero.setAttribute("class", "axis");
    this.#peak.className = "peak";
    this.#reading.className = "reading";
    const head = Object.assign(document.createElement("i"), { className: "head" });
    this.node.className = "trace";
    this.node.tabIndex = 0;
    this.node.setAttribute("role", "slider");
    this.node.setAttribute("aria-valuemin", "0");
    this.node.append(svg, this.#peak, head, this.#reading);
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.node.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.node.setPointerCapture(event.pointerId);
      this.#point(event);
    });
    this.node.addEventListener("pointermove", (event) => {
      if (this.node.hasPointerCapture(event.pointerId)) this.#point(event);
    });
    this.time(0);
  }

  /** values: predicted reward at each frame, or null; scale: [lowest, highest] of all videos; name: for aria. */
  show({ values, fps, scale: [low, high], name }) {
    this.#values = values ?? [];
    this.#fps = fps;
    if (!this.#duration && values && fps) this.length(values.length / fps); // until the video itself tells
    this.node.setAttribute("aria-label", `Moment of the video, ${name}`);
    const y = (value) => (high > low ? 94 - (88 * (value - low)) / (high - low) : 50);
    const x = (i) => (100 * (i + 0.5)) / this.#values.length;
    this.#line.setAttribute("points", this.#values.map((v, i) => `${x(i).toFixed(2)},${y(v).toFixed(2)}`).join(" "));
    for (const [key, value] of Object.entries({ x1: 0, x2: 100, y1: y(0), y2: y(0) })) this.#zero.setAttribute(key, value);
    this.#zero.style.display = low < 0 && high > 0 ? "" : "none";
    const best = this.#values.indexOf(Math.max(...this.#values));
    this.#peak.hidden = best < 0;
    if (best >= 0) {
      this.#peak.style.left = `${x(best)}%`;
      this.#peak.style.top = `${y(this.#values[best])}%`;
      this.#peak.title = `The reward model likes this moment best: ${number(this.#values[best])}`;
    }
    this.time(this.#time);
  }

  /** How long the video is, in seconds. */
  length(duration) {
    this.#duration = duration;
    this.node.setAttribute("aria-valuemax", duration.toFixed(2));
  }

  /** Where the video is, in seconds. */
  time(time) {
    this.#time = time;
    this.node.style.setProperty("--at", this.#duration ? Math.min(time / this.#duration, 1) : 0);
    this.node.setAttribute("aria-valuenow", time.toFixed(2));
    const value = this.#values[Math.min(Math.floor(time * (this.#fps ?? 0)), this.#values.length - 1)];
    const words = `${time.toFixed(1)} s${value === undefined ? "" : ` · predicted ${number(value)}`}`;
    this.node.setAttribute("aria-valuetext", words);
    this.#reading.textContent = words;
  }

  #seek(time) {
    const known = Math.min(Math.max(time, 0), this.#duration);
    this.time(known);
    this.#onSeek(known);
  }

  #point(event) {
    const box = this.node.getBoundingClientRect();
    this.#seek(((event.clientX - box.left) / box.width) * this.#duration);
  }

  #key(event) {
    const to = { Home: 0, End: this.#duration }[event.key] ?? (event.key in KEYS ? this.#time + KEYS[event.key] : null);
    if (to === null || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.#seek(to);
  }
}

/** [lowest, highest] predicted reward over all rounds. */
export function sharedScale(rounds) {
  const values = rounds.flatMap((round) => round.predicted ?? []);
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}
