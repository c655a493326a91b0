// A one-minute tour, offered on the first visit: what is asked, how to say it, that nothing can be broken.

const STORED = "rlhf-gym tour";
const STEPS = [
  { at: null, title: "First, what it does untaught", says: "This is the agent before anyone has taught it anything.", video: true },
  { at: ".goal-line", title: "You have something in mind", says: "Write it down here, for yourself: the agent never reads it. It learns from your choices alone." },
  { at: "#stage", title: "Two clips, one question", says: "Which of the two comes closer to what you want? Judge what you see, not what you think it meant." },
  { at: ".choices", title: "Say so", says: "With a key, a button, or a swipe towards the better one. Shift with an arrow key, or a finger that stays on the button, means much better. Equal and can’t tell are honest answers, too." },
  { at: ".transport", title: "Look closely", says: "Pause, slow down, go frame by frame: both clips always show the same moment." },
  { at: ".strip, #undo", title: "Nothing is final", says: "Undo goes back step by step. Your last ten judgements stay below: click one to change it." },
  { at: ".topbar", title: "Then it learns", says: "After the last pair the agent trains by itself and comes back with new clips. Leave whenever you like: every label is saved at once." },
];

export class Tour {
  #offer = document.getElementById("tour-offer");
  #dialog = document.getElementById("tour");
  #video = this.#dialog.querySelector("video");
  #steps = [];
  #at = 0;
  #untrained = null;

  constructor() {
    this.#offer.addEventListener("click", (event) => {
      const what = event.target.closest("button")?.dataset.tour;
      if (!what) return;
      this.#seen();
      if (what === "watch") this.begin(true);
      if (what === "begin") this.begin(false);
    });
    this.#dialog.addEventListener("click", (event) => {
      const by = event.target.closest("[data-step]")?.dataset.step;
      if (by) this.#show(this.#at + Number(by));
    });
    this.#dialog.addEventListener("close", () => this.#spot(null));
    document.getElementById("tour-button").addEventListener("click", () => {
      document.getElementById("menu").close();
      this.begin(this.#untrained !== null);
    });
  }

  /** Offers the tour on the first visit; new: so it seems. video: that of the untrained agent, or null. */
  offer(isNew, video) {
    this.#untrained = video;
    const first = isNew && localStorage.getItem(STORED) === null && !this.#dialog.open;
    this.#offer.hidden = !first;
    this.#offer.querySelector("[data-tour=watch]").hidden = video === null;
  }

  begin(withVideo) {
    this.#seen();
    this.#steps = STEPS.filter((step) => !step.video || withVideo);
    if (withVideo) this.#video.src = this.#untrained.url;
    this.#dialog.showModal();
    this.#show(0);
  }

  #show(at) {
    if (at >= this.#steps.length) {
      this.#dialog.close();
      return;
    }
    this.#at = Math.max(at, 0);
    const step = this.#steps[this.#at];
    this.#dialog.querySelector("h2").textContent = step.title;
    this.#dialog.querySelector("p").textContent = step.says;
    this.#dialog.querySelector("[data-step='-1']").hidden = this.#at === 0;
    this.#dialog.querySelector("[data-step='1']").textContent = this.#at === this.#steps.length - 1 ? "Begin" : "Next";
    this.#dialog.querySelector(".dots").textContent = `${this.#at + 1} of ${this.#steps.length}`;
    this.#dialog.classList.toggle("above", [".choices", ".transport", ".strip, #undo"].includes(step.at));
    this.#video.hidden = !step.video;
    if (step.video) this.#video.play().catch(() => {}); // the browser may want a click: it has controls
    else this.#video.pause();
    this.#spot(step.at);
  }

  #spot(selector) {
    for (const element of document.querySelectorAll(".spot")) element.classList.remove("spot");
    if (selector) for (const element of document.querySelectorAll(selector)) element.classList.add("spot");
    if (selector === null && !this.#dialog.open) this.#video.pause();
  }

  #seen() {
    localStorage.setItem(STORED, "seen");
    this.#offer.hidden = true;
  }
}
