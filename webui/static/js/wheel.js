// The person at the wheel: pause, stop, train longer, go back, start anew, star. Buttons with data-steer or data-star
// work wherever they stand.

import { roundName } from "./format.js";
import { post } from "./outbox.js";

const WORDS = {
  pause: { says: "Pause", hint: "Holds the training until you go on" },
  continue: { says: "Go on", hint: "The training goes on" },
  longer: { says: "Train longer", hint: "As many steps again, on the same reward model", toast: "It trains on for as many steps again." },
  anew: {
    says: "Start the agent anew",
    hint: "For an agent that is stuck: an untrained one learns from the reward model there is",
    sure: "An untrained agent will learn from what you have taught so far. The agents of earlier rounds are kept.",
  },
  more: { says: "Two more rounds", hint: "Collect, label and train twice more", toast: "Two more rounds." },
  stop: {
    says: "Stop for today",
    hint: "Ends the program; everything is kept",
    sure: "The program ends. Every label is kept; of the training at most the last minute is lost. This makes it go on:",
  },
  back: {
    says: "Go on from here",
    hint: "The next round begins with this agent",
    sure: "New clips of this agent take the place of those that wait, and the next round trains it on. Your labels keep counting, later agents are kept.",
  },
};
const TRAINING = ["train_reward", "train_agent"];

export class Wheel {
  #base;
  #say;
  #places = [...document.querySelectorAll("[data-wheel]")];
  #sure = document.getElementById("sure");
  #state = null;
  #painted = "";
  #tabs; // the other tabs of this session
  stopping = false; // the person has stopped the program: that the server is gone is no trouble

  constructor(base, say) {
    this.#base = base;
    this.#say = say;
    this.#tabs = new BroadcastChannel(`rlhf-gym ${base}`);
    this.#tabs.onmessage = ({ data }) => (this.stopping = data.stopping);
    document.addEventListener("tiles", () => this.#tiles());
    document.addEventListener("click", (event) => {
      const button = event.target.closest?.("[data-steer], [data-star]");
      if (!button) return;
      if (button.dataset.star) this.#star(Number(button.dataset.star));
      else this.#ask(button.dataset.steer, button.dataset.round);
    });
  }

  show(state) {
    this.#state = state;
    this.#tiles();
    const does = possible(state);
    const painted = does.join();
    if (painted === this.#painted) return;
    this.#painted = painted;
    for (const place of this.#places) {
      place.hidden = !does.length;
      place.replaceChildren(...does.map((what) => button(what)));
    }
  }

  /** The buttons on the tiles of the wall. */
  #tiles() {
    const { star, base, view, practice, phase } = this.#state;
    for (const place of document.querySelectorAll(".tile-actions")) {
      const painted = JSON.stringify([star, base, view, practice, phase === "record"]);
      if (place.dataset.painted === painted) continue;
      const focused = place.contains(document.activeElement) && document.activeElement.className;
      place.dataset.painted = painted;
      place.replaceChildren(...tileActions(Number(place.dataset.round), this.#state));
      if (focused) place.querySelector(`.${focused}`)?.focus();
    }
  }

  async #ask(what, round) {
    const { says, sure } = WORDS[what];
    if (sure) {
      document.getElementById("menu").close();
      const target = what === "back" ? `Go on from ${Number(round) < 0 ? "the untrained agent" : roundName(Number(round))}?` : `${says}?`;
      this.#sure.querySelector("h2").textContent = target;
      this.#sure.querySelector("p").textContent = sure;
      this.#sure.querySelector(".command").hidden = what !== "stop";
      this.#sure.querySelector(".command").textContent = this.#state.resume;
      this.#sure.querySelector("[value=yes]").textContent = says;
      this.#sure.returnValue = "";
      this.#sure.showModal();
      await new Promise((resolve) => this.#sure.addEventListener("close", resolve, { once: true }));
      if (this.#sure.returnValue !== "yes") return;
    }
    if (what === "stop") this.stopping = true;
    const body = what === "back" ? { do: what, round: Number(round) } : { do: what };
    const done = await this.#tell("steer", body, WORDS[what].toast);
    if (what !== "stop") return;
    this.stopping = done;
    this.#tabs.postMessage({ stopping: done });
  }

  #star(round) {
    return this.#tell("star", { round: this.#state.star === round ? null : round });
  }

  async #tell(path, body, toast) {
    const { status, answer } = await post(`${this.#base}/${path}`, body);
    const good = status >= 200 && status < 300;
    if (!good) this.#say.toast(answer?.detail ?? "The server did not answer: try again.");
    else if (path === "steer" && !answer.running) this.#say.toast(`It happens when the session goes on: ${answer.resume}`);
    else if (toast) this.#say.toast(toast);
    return good;
  }
}

/** What there is to do in a state, in the order of the buttons. */
function possible({ view, running, phase, trained, progress }) {
  const taught = trained.at(-1) >= 0 || TRAINING.includes(phase); // there is a reward model, or soon will be
  const learned = taught ? ["longer", "anew"] : [];
  if (view === "finished") return ["more", ...learned];
  if (!running) return learned;
  if (view === "label") return [...learned, "stop"];
  return [progress?.paused ? "continue" : "pause", ...learned, "stop"];
}

function button(what) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: WORDS[what].says, title: WORDS[what].hint });
  made.dataset.steer = what;
  return made;
}

function tileActions(round, state) {
  const name = round < 0 ? "the untrained agent" : roundName(round);
  const star = document.createElement("button");
  const starred = state.star === round;
  Object.assign(star, { type: "button", className: "star", textContent: starred ? "★" : "☆", title: starred ? "No longer the best" : "The best so far" });
  star.dataset.star = round;
  star.setAttribute("aria-pressed", String(starred));
  star.setAttribute("aria-label", `The best so far: ${name}`);
  const back = button("back");
  back.className = "back";
  back.dataset.round = round;
  back.setAttribute("aria-label", `Go on from ${name}`);
  back.hidden = state.base === round && !state.practice && state.view !== "finished" && state.phase !== "record";
  return [star, back];
}
