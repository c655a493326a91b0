// The goal sentence: click to change it, Enter keeps the change, Escape does not.

import { post } from "./outbox.js";

const EMPTY = "What should the agent do? Write a goal";

export class Goal {
  #button = document.getElementById("goal");
  #input = document.getElementById("goal-input");
  #text = "";
  #pending = null; // sent, but not yet told back by the server

  /** say.toast(text) reports a change that was not kept. */
  constructor(base, say) {
    this.#button.addEventListener("click", () => this.#edit());
    this.#input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#input.value = this.#text;
      if (event.key === "Escape" || (event.key === "Enter" && !event.isComposing)) this.#input.blur();
    });
    this.#input.addEventListener("blur", async () => {
      if (this.#input.hidden) return;
      this.#input.hidden = true;
      this.#button.hidden = false;
      const text = this.#input.value.trim();
      if (text === this.#text) return;
      const before = this.#text;
      this.#pending = text;
      this.#paint(text);
      const { status, answer } = await post(`${base}/goal`, { text });
      this.#pending = null;
      if (status >= 200 && status < 300) return;
      this.#paint(before);
      say.toast(answer?.detail ?? "The goal was not saved: the server is gone. Try again when it is back.");
    });
  }

  show(text) {
    if (this.#pending === null && this.#input.hidden) this.#paint(text);
  }

  #paint(text) {
    this.#text = text;
    this.#button.textContent = text || EMPTY;
    this.#button.classList.toggle("empty", !text);
  }

  #edit() {
    this.#input.value = this.#text;
    this.#input.hidden = false;
    this.#button.hidden = true;
    this.#input.focus();
    this.#input.select();
  }
}
