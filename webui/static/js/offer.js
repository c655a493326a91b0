// Where most clips look alike to the person, the page offers others: longer ones, or pairs that differ more.

import { post } from "./outbox.js";

const WINDOW = 10; // the last so many judgements of a batch; half of a batch that is smaller
const FEWEST = 5;
const MOST = 0.6; // of them

export class Offer {
  #base;
  #say;
  #box = document.getElementById("clips-offer");
  #refusedAt = null; // labels of the batch when the person said no
  #batch = null;

  constructor(base, say) {
    this.#base = base;
    this.#say = say;
    this.#box.addEventListener("click", (event) => {
      const wish = event.target.closest("button")?.dataset.clips;
      if (wish) this.#answer(wish);
    });
  }

  /** judged: the choices of this batch, oldest first, as far as the strip shows them. */
  look(batch, total, labeled, judged) {
    if (batch !== this.#batch) this.#refusedAt = null;
    this.#batch = batch;
    const window = Math.min(WINDOW, Math.max(FEWEST, Math.ceil(total / 2)));
    const last = judged.slice(-window);
    const alike = last.filter((choice) => choice === "equal" || choice === "skip").length;
    const heard = this.#refusedAt !== null && labeled < this.#refusedAt + window;
    this.#box.hidden = labeled >= total || last.length < window || alike < MOST * window || heard;
    this.#box.dataset.labeled = labeled;
  }

  hide() {
    this.#box.hidden = true;
  }

  async #answer(wish) {
    this.#box.hidden = true;
    if (wish === "no") {
      this.#refusedAt = Number(this.#box.dataset.labeled);
      return;
    }
    const { status, answer } = await post(`${this.#base}/clips`, { [wish]: true });
    if (status >= 200 && status < 300) this.#say.toast("New clips are on their way. What you said so far counts.");
    else this.#say.toast(answer?.detail ?? "The server did not answer: try again.");
  }
}
