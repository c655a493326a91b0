// The curves: how the session has gone, in a few calm charts. Plotly comes along when they are first scrolled to.

import { NAMES, charts } from "./charts.js";
import { draw, loadPlotly, theme } from "./plot.js";
import { ask, fetchRounds } from "./rounds.js";

const FRESH_MS = 10_000; // while the agent is being trained
const SOONEST_MS = 1500; // between two questions

const $ = (id) => document.getElementById(id);

export class Curves {
  #base;
  #state = null;
  #asked = { key: null, at: -Infinity };
  #asking = false;
  #timer = null;
  #data = null;
  #figures = new Map(); // by chart
  #plotly = null;
  #seen = false;
  #awake = false;

  constructor(base) {
    this.#base = base;
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.#see(), {
      root: $("watch-view"),
      rootMargin: "300px 0px",
    }).observe($("curves"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  show(state) {
    this.#state = state;
    this.#awake = true;
    const { trained, true_returns, phase, round, last_label, star } = state;
    const key = JSON.stringify([trained, true_returns, phase, round, last_label, star, state.progress?.phase]);
    const since = performance.now() - this.#asked.at;
    const due = key !== this.#asked.key || (state.view === "train" && since > FRESH_MS);
    if (!due || this.#asking || this.#timer) return;
    this.#timer = setTimeout(() => this.#fetch(key), Math.max(SOONEST_MS - since, 0));
  }

  leave() {
    this.#awake = false;
  }

  async #fetch(key) {
    this.#timer = null;
    if (!this.#awake) return;
    this.#asking = true;
    this.#asked = { key, at: performance.now() };
    const names = NAMES.map((name) => `names=${encodeURIComponent(name)}`).join("&");
    const [metrics, wall] = await Promise.all([ask(`${this.#base}/metrics?${names}`), fetchRounds(this.#base, this.#state)]);
    this.#asking = false;
    if (metrics && wall) {
      const series = Object.fromEntries(metrics.series.map((one) => [one.name, one]));
      this.#data = { rounds: wall.rounds, series, labels: metrics.labels };
      this.#draw();
    } else this.#asked.key = null;
    if (this.#awake) this.show(this.#state); // something may have happened meanwhile
  }

  async #see() {
    if (this.#seen) return;
    this.#seen = true;
    try {
      this.#plotly = await loadPlotly($("curves").dataset.plotly);
    } catch {
      this.#seen = false; // the next time they come into view
    }
    this.#draw();
  }

  #draw() {
    if (!this.#data) return;
    const look = theme();
    const all = Object.entries(charts(this.#data, look));
    $("curves").hidden = all.every(([, chart]) => !chart);
    for (const [id, chart] of all) {
      if (!this.#figures.has(id)) this.#figures.set(id, makeFigure(id));
      const figure = this.#figures.get(id);
      figure.hidden = !chart;
      if (!chart) continue;
      write(figure, chart);
      if (this.#plotly && figure.offsetWidth) draw(this.#plotly, figure.querySelector(".plot"), chart, look);
    }
  }
}

function makeFigure(id) {
  const figure = $("charts").appendChild(document.createElement("figure"));
  figure.className = "chart";
  figure.id = `chart-${id}`;
  const caption = figure.appendChild(document.createElement("figcaption"));
  for (const [tag, name] of [["h3", ""], ["p", "keys"], ["p", "quiet how"]]) {
    caption.appendChild(document.createElement(tag)).className = name;
  }
  const plot = figure.appendChild(document.createElement("div"));
  plot.className = "plot";
  plot.setAttribute("role", "img");
  const alarm = figure.appendChild(document.createElement("p"));
  alarm.className = "alarm";
  alarm.setAttribute("role", "status");
  return figure;
}

function write(figure, { title, how, keys, words, alarm = "" }) {
  const [heading, marks, lead] = figure.querySelector("figcaption").children;
  heading.textContent = title;
  marks.hidden = !keys.length;
  marks.replaceChildren(
    ...keys.map(([kind, name]) => {
      const mark = document.createElement("span");
      mark.className = `mark-${kind}`;
      mark.textContent = name;
      return mark;
    }),
  );
  lead.textContent = how;
  figure.querySelector(".plot").setAttribute("aria-label", `${title}: ${words}`);
  const line = figure.querySelector(".alarm");
  line.hidden = !alarm;
  if (line.textContent !== alarm) line.textContent = alarm;
}
