// How fast one labels, and how much is left: "12 of 40 · about 2 min left · 4.1 s a label".

import { duration, median } from "./format.js";

const OVER = 10; // the pace is the median over that many labels
const FEWEST = 3; // the first ones take longer: one still finds one's way

export class Pace {
  #seconds = [];

  add(seconds) {
    this.#seconds = [...this.#seconds, seconds].slice(-OVER);
  }

  /** The parts of the line, for the pair on screen. */
  line(labeled, total) {
    const left = Math.max(total - labeled, 0);
    if (!left) return [`${total} of ${total}`];
    const parts = [`${Math.min(labeled + 1, total)} of ${total}`];
    if (this.#seconds.length >= FEWEST) {
      const pace = median(this.#seconds);
      parts.push(`about ${duration(left * pace)} left`, `${pace.toFixed(1)} s a label`);
    }
    return parts;
  }
}

/** For how long the pair on screen was not to be seen: logged with its label. */
export class Hidden {
  #since = null;
  #passed = 0; // ms

  constructor() {
    document.addEventListener("visibilitychange", () => this.passed());
  }

  /** now: when the pair came on screen. */
  begin(now) {
    this.#since = document.hidden ? now : null;
    this.#passed = 0;
  }

  passed() {
    const now = performance.now();
    if (this.#since !== null) this.#passed += now - this.#since;
    this.#since = document.hidden ? now : null;
    return this.#passed;
  }
}
