// What is happening while nothing is to be labeled: phase, progress, numbers and the newest video.

import { duration, number } from "./format.js";

const TITLES = {
  collect: "Collecting clips of the agent",
  label: "Labels are coming in",
  train_reward: "Learning your taste",
  train_agent: "Training the agent",
  record: "Watching how the agent does",
};
const LEADS = {
  collect: "New pairs are being cut from what the agent does now. They come up here by themselves.",
  label: "The synthetic labeler judges this batch.",
  train_reward: "The reward model learns from all labels so far.",
  train_agent: "The agent practises what the reward model took from your labels.",
  record: "A few episodes for the record, scored with the true reward; it is never trained on.",
};
const NEXT = {
  collect: "collecting clips",
  label: "labeling",
  train_reward: "training the reward model",
  train_agent: "training the agent",
  record: "recording the agent",
};

const $ = (id) => document.getElementById(id);

export class Watch {
  #agent = new Film($("agent"));
  #before = new Film($("before"));

  show(state) {
    $("to-label").hidden = state.view !== "label";
    const progress = state.view === "train" ? state.progress : null;
    const phase = progress && progress.phase in TITLES && progress.phase !== "label" ? progress.phase : state.phase;
    for (const step of $("steps").children) {
      step.ariaCurrent = step.dataset.phase === phase && state.view !== "finished" ? "step" : null;
    }
    this.#words(state, phase, progress);
    this.#progress(progress?.phase === phase ? progress : null);
    this.#numbers(progress?.numbers ?? {});
    this.#agreed(state.consistency);
    this.#newest(state);
  }

  /** The share done of the phase, for the tab's title; null where it is not known. */
  static share(state) {
    const { done, total } = state.progress ?? {};
    return state.view === "train" && total > 0 && done !== null ? Math.min(done / total, 1) : null;
  }

  #words(state, phase, progress) {
    const count = state.round + 1;
    if (state.view === "finished") {
      const rounds = `${count} ${count === 1 ? "round" : "rounds"}`;
      this.#say(`Finished after ${rounds}`, "Everything is kept. To teach it further:");
      this.#command(`${state.resume} --rounds ${2 * count}`);
    } else if (state.view === "label") {
      const left = state.pairs - state.labeled;
      const back = `Go back to ${left === 1 ? "it" : "them"} whenever you like.`;
      const lead = state.running ? back : "Nothing trains now; your labels are kept. To go on:";
      this.#say(left === 1 ? "One pair waits for you" : `${left} pairs wait for you`, lead);
      this.#command(state.running ? "" : state.resume);
    } else if (state.view === "paused") {
      this.#say("Not running", `Nothing is lost. Next comes ${NEXT[phase]}. This, in a terminal, makes it go on:`);
      this.#command(state.resume);
    } else {
      const paused = progress?.paused && "You paused it. It goes on where it was as soon as you say so.";
      this.#say(paused ? "Paused" : TITLES[phase], paused || progress?.message || LEADS[phase]);
      this.#command("");
    }
  }

  #say(title, lead) {
    $("now-title").textContent = title;
    $("now-message").textContent = lead;
  }

  #command(text) {
    $("now-command").hidden = !text;
    $("now-command").firstElementChild.textContent = text;
  }

  #progress(progress) {
    $("now-progress").hidden = !progress;
    if (!progress) return;
    const { done, total, speed, eta } = progress;
    const unit = progress.unit ?? "";
    const known = total > 0 && done !== null;
    if (known) $("now-bar").value = Math.min(done / total, 1);
    else $("now-bar").removeAttribute("value"); // the browser shows that it does not know
    const parts = [];
    if (known) parts.push(`${number(done)} of ${number(total)} ${unit}`.trim());
    if (speed >= 1) parts.push(`${number(speed)} ${unit || "steps"}/s`);
    if (eta !== null && eta !== undefined) parts.push(eta < 1 ? "almost done" : `about ${duration(eta)} left`);
    $("now-line").textContent = parts.join(" · ");
    const shares = Object.entries(progress.parts).map(([part, share]) => `${part} ${Math.round(100 * share)} %`);
    $("now-parts").hidden = !shares.length;
    $("now-parts").textContent = shares.join(", ");
  }

  #numbers(numbers) {
    $("now-numbers").replaceChildren(
      ...Object.entries(numbers).map(([name, value]) => {
        const row = document.createElement("div");
        const term = row.appendChild(document.createElement("dt"));
        term.textContent = name.replaceAll("_", " ");
        row.appendChild(document.createElement("dd")).textContent = number(value);
        return row;
      }),
    );
  }

  /** What the hidden repeats of the batch say: never shown while one labels. */
  #agreed(consistency) {
    $("consistency").hidden = !consistency;
    if (!consistency) return;
    const { agreed, repeats } = consistency;
    const pairs = repeats === 1 ? "One pair" : `${repeats} pairs`;
    const came = `${pairs} in which you chose a clip came again, sides swapped`;
    $("consistency").textContent = `${came}: you agreed with yourself in ${agreed} of ${repeats}.`;
  }

  /** While it is trained: the agent as it is now, beside the round before. Else the newest there is. */
  #newest(state) {
    const { live, video } = state;
    this.#agent.show(live?.now ?? video, live ? "In training, a moment ago" : this.#who(state, video));
    this.#before.show(live?.before ?? null, this.#who(state, live?.before));
  }

  #who(state, video) {
    if (!video) return "";
    const known = state.true_returns.find((r) => r.round === video.round);
    const who = video.round < 0 ? "The untrained agent" : `The agent after round ${video.round}`;
    return who + (known ? ` · true return ${number(known.mean)}` : "");
  }

  /** Stops the videos while clips are on screen. */
  leave() {
    for (const film of [this.#agent, this.#before]) film.stop();
  }

  enter() {
    for (const film of [this.#agent, this.#before]) film.start();
  }
}

/** A looping video with its caption; a new one takes the place of the old once it can be shown. */
class Film {
  #figure;
  #video;
  #url = null;
  #playing = true;

  constructor(figure) {
    this.#figure = figure;
    this.#video = figure.querySelector("video");
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#video.autoplay = !calm;
    this.#video.controls = calm;
  }

  show(video, caption) {
    this.#figure.lastElementChild.textContent = caption;
    const url = video?.url ?? null;
    if (url === this.#url) return;
    this.#url = url;
    if (!url) {
      this.#figure.hidden = true;
      return;
    }
    const next = this.#video.cloneNode();
    next.setAttribute("aria-label", caption);
    next.muted = true; // a clone is not, whatever its attribute says
    next.addEventListener("loadeddata", () => {
      if (this.#url !== url) return;
      this.#video.replaceWith(next);
      this.#video = next;
      this.#figure.hidden = false;
      if (!this.#playing) next.pause();
    });
    next.addEventListener("error", () => this.#url === url && (this.#figure.hidden = true));
    next.src = url;
  }

  stop() {
    this.#playing = false;
    this.#video.pause();
  }

  start() {
    this.#playing = true;
    if (this.#video.autoplay && this.#video.src) this.#video.play().catch(() => {}); // the browser may want a click
  }
}
