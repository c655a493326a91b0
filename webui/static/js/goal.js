// The goal sentence: click to change it, Enter keeps the change, Escape does not. Earlier goals are offered again;
// after a change the page asks once whether the labels so far still count.

import { getJson, post } from "./outbox.js";

const EMPTY = "What should the agent do? Write a goal";

export class Goal {
  #button = document.getElementById("goal");
  #input = document.getElementById("goal-input");
  #text = "";
  #told = ""; // what the server said last: another tab may change it while one types
  #pending = null; // sent, but not yet told back by the server
  #base;
  #ask = document.getElementById("goal-ask");

  /** say.toast(text) reports a change that was not kept. */
  constructor(base, say) {
    this.#base = base;
    this.#button.addEventListener("click", () => this.#edit());
    this.#input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#input.value = this.#text; // as it was when one began
      if (event.key === "Escape" || (event.key === "Enter" && !event.isComposing)) this.#input.blur();
    });
    this.#input.addEventListener("blur", async () => {
      if (this.#input.hidden) return;
      this.#input.hidden = true;
      this.#button.hidden = false;
      const text = this.#input.value.trim();
      if (text === this.#text) {
        this.#paint(this.#told);
        return;
      }
      const before = this.#text;
      const told = this.#told;
      this.#pending = text;
      this.#paint(text);
      const { status, answer } = await post(`${base}/goal`, { text });
      this.#pending = null;
      if (status >= 200 && status < 300) {
        this.#ask.hidden = !answer?.last_label; // without labels there is nothing to ask
        if (this.#told === told) this.#told = answer?.goal ?? text; // else it told of one that came after ours
        this.#paint(this.#told);
        return;
      }
      this.#paint(before);
      say.toast(answer?.detail ?? "The goal was not saved: the server is gone. Try again when it is back.");
    });
    this.#ask.addEventListener("click", async (event) => {
      const answer = event.target.closest("button")?.dataset.count;
      if (!answer) return;
      if (answer === "no") {
        const { status, answer: problem } = await post(`${base}/forget`, {});
        if (status === 0 || status >= 300) {
          say.toast(problem?.detail ?? "The server did not answer: try again.");
          return;
        }
        say.toast("The labels so far no longer count. What you say from now on does.");
      }
      this.#ask.hidden = true;
    });
  }

  show(text) {
    this.#told = text;
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
    this.#history();
  }

  /** The browser offers what was there before while one types. */
  async #history() {
    const goals = (await getJson(`${this.#base}/goals`)) ?? [];
    const texts = [...new Set(goals.map((goal) => goal.text))].filter((text) => text && text !== this.#text);
    const options = texts.reverse().map((value) => Object.assign(document.createElement("option"), { value }));
    document.getElementById("goals").replaceChildren(...options);
  }
}
