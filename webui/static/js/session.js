// A session's page: follows the session's state and shows the view that belongs to it. Nobody ever reloads it.

import { Goal } from "./goal.js";
import { Labeling } from "./label.js";
import { Live } from "./live.js";
import { Watch } from "./watch.js";
import { Calls } from "./calls.js";
import { KeyList, Keys } from "./keys.js";
import { Tour } from "./tour.js";
import { post } from "./outbox.js";
import { Wheel } from "./wheel.js";

const TOAST_MS = 5000;
const QUIET_TROUBLE_MS = 600; // a label that is saved at the second try is nobody's trouble

const $ = (id) => document.getElementById(id);
const app = $("app");
const menu = $("menu");

let state = JSON.parse(app.dataset.state);
let toastTimer = null;
let troubleTimer = null;
let gone = false;
let whyGone = null;
let unsaved = 0;
let whyUnsaved = null;

const base = `/api/s/${state.name}`;
const say = {
  toast(text) {
    $("toast").textContent = text;
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => ($("toast").textContent = ""), TOAST_MS);
  },
  speak(text) {
    $("spoken").textContent = text;
  },
  trouble(count, sentence) {
    unsaved = count;
    whyUnsaved = sentence;
    clearTimeout(troubleTimer);
    troubleTimer = setTimeout(showTrouble, count ? QUIET_TROUBLE_MS : 0);
  },
  count(parts, share) {
    $("count").replaceChildren(...parts.map((part) => Object.assign(document.createElement("span"), { textContent: part })));
    $("bar").value = share;
    $("bar").title = parts.join(" · ");
  },
};

const labeling = new Labeling(base, state, say);
const watch = new Watch();
const goal = new Goal(base, say);
const calls = new Calls();
const wheel = new Wheel(base, say);
const tour = new Tour();
const keys = new Keys(() => keyList.paint());
const keyList = new KeyList(keys);
let dashboard = null; // loaded when it is first looked at
let looking = false; // at the dashboard by choice, even when pairs wait for labels
let batch = null; // the newest that was to be labeled, as far as we have seen
let first = true;

function show(next) {
  if (next.created !== state.created) {
    location.reload(); // another session of the same name
    return;
  }
  const before = app.dataset.view;
  state = next;
  const wanted = state.view === "label";
  const judging = wanted && !looking;
  app.dataset.view = judging ? "label" : wanted ? "dashboard" : state.view;
  $("views").hidden = !wanted;
  for (const button of $("views").children) button.ariaCurrent = (button.dataset.to === "label") === judging ? "page" : null;
  $("label-view").hidden = !judging;
  $("watch-view").hidden = judging;
  $("count").hidden = $("bar").hidden = !judging;
  $("idle").hidden = !judging || state.running;
  $("idle").querySelector("code").textContent = state.resume;
  $("close-batch").hidden = !judging || !state.labeled;
  const from = state.base < 0 ? "the untrained agent" : `round ${state.base}`;
  const back = state.base !== state.trained.at(-1) ? `, from ${from}` : "";
  $("round").textContent = (state.round < 0 ? "start" : `round ${state.round}`) + back;
  goal.show(state.goal);
  wheel.show(state);
  if (judging) {
    labeling.update(state);
    watch.leave();
    dashboard?.leave();
  } else {
    labeling.leave();
    watch.show(state);
    showDashboard();
    if (before === "label") {
      watch.enter();
      if (!wanted) $("watch-view").scrollTop = 0; // not by choice: what happens now comes first
    }
  }
  callBack(wanted ? `${state.round}-${state.attempt}` : null);
  calls.offer(state.view === "train" && state.labeler === "human");
  tour.offer(judging && state.round === 0 && state.labeled < 3, state.video?.round === -1 ? state.video : null);
  document.title = `${titleOf(state)} · ${state.title}`;
  $("title").textContent = state.title;
}

async function showDashboard() {
  if (!dashboard) {
    const { Dashboard } = await import("./dashboard.js");
    dashboard ??= new Dashboard(base, say, { keys, outbox: labeling.outbox });
  }
  if (!$("watch-view").hidden) dashboard.show(state);
}

/** ready: the batch that waits for the person now, or null. */
function callBack(ready) {
  if (ready && ready !== batch && !first) calls.call(state.title, state.pairs - state.labeled);
  batch = ready ?? batch;
  first = false;
}

function titleOf({ view, phase, labeled, pairs, progress }) {
  if (view === "label") return `${calls.calling ? "● " : ""}Label ${pairs - labeled} more`;
  if (view === "paused") return "Not running";
  if (view === "finished") return "Finished";
  const share = Watch.share(state);
  const doing = { collect: "Collecting", record: "Recording" }[progress?.phase || phase] ?? "Training";
  return share === null ? doing : `${doing} ${Math.floor(share * 100)}%`;
}

function showTrouble() {
  const parts = [];
  if (gone && wheel.stopping && !unsaved) {
    $("trouble").hidden = false;
    $("trouble").textContent = `Stopped; everything is kept. To go on: ${state.resume}`;
    return;
  }
  if (gone) parts.push(whyGone ?? "The server is gone. Trying again …");
  if (unsaved) parts.push(`${unsaved === 1 ? "One label is" : `${unsaved} labels are`} not saved yet, trying again.`);
  if (unsaved && whyUnsaved) parts.push(whyUnsaved);
  if (gone && !whyGone) parts.push(`To start it: ${state.resume}`);
  $("trouble").hidden = !parts.length;
  $("trouble").textContent = parts.join(" ");
}

keys.listen(
  (what, strong) => (what === "help" ? menu.showModal() : labeling.act(what, strong)),
  (what) => what === "help" || app.dataset.view === "label", // elsewhere arrows and Space scroll
);
$("views").addEventListener("click", (event) => {
  const to = event.target.closest("button")?.dataset.to;
  if (!to) return;
  looking = to === "dashboard";
  show(state);
});
$("to-label").addEventListener("click", () => {
  looking = false;
  show(state);
});
$("menu-button").addEventListener("click", () => menu.showModal());
menu.addEventListener("click", (event) => {
  if (event.target === menu) menu.close(); // beside the dialog
});
$("close-button").addEventListener("click", async () => {
  menu.close();
  const { status, answer } = await post(`${base}/close`, {});
  if (status >= 300 || status === 0) say.toast(answer?.detail ?? "The server did not answer: try again.");
});

show(state);
new Live(base, {
  state: show,
  up() {
    if (gone) wheel.stopping = false; // it was started again
    gone = false;
    showTrouble();
    labeling.outbox.kick();
  },
  down(why) {
    gone = true;
    whyGone = why;
    showTrouble();
  },
});
