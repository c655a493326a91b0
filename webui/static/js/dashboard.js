// The dashboard below what the loop is doing: the wall, the curves, the labels. Loaded when it is first looked at.

import { Browser } from "./browser.js";
import { Curves } from "./curves.js";
import { Wall } from "./wall.js";

export class Dashboard {
  #parts;

  /** base: the session's address in the API; say: { toast(text) }; hands: { keys, outbox } of the labeling page. */
  constructor(base, say, hands) {
    this.#parts = [new Wall(base, say), new Curves(base, say), new Browser(base, hands)];
  }

  /** Shows what there is to the session's state; called whenever that changes. */
  show(state) {
    for (const part of this.#parts) part.show(state);
  }

  /** Something else is on screen now: videos stop. */
  leave() {
    for (const part of this.#parts) part.leave();
  }
}
