// The charts of a session: what each says, and how it is drawn. A chart is null while there is nothing to draw.

import { number, roundName } from "./format.js";
import { above, lastOfRounds, partedSince, steadySteps, unit } from "./gap.js";
import { faint } from "./plot.js";

const HOW_TRUE = "The mean of an evaluation, plus and minus one standard deviation. It is never trained on.";
const HOW_BOTH =
  "The true return, left, is never trained on; the predicted one, right, is what the newest reward model says of each " +
  "round’s video. Each is drawn from its lowest to its highest.";
const HOW_GAP = " Shaded: the model thinks more of the agent than the true reward does.";
const PARTED =
  "the predicted return rose while the true one fell: it may please the reward model with something you would not " +
  "like. Watch it on the wall, label such pairs, or go back.";
const HOW_TRAINING =
  "Returns of the last hundred episodes while the agent practises; a line where a round begins. Each round has its own " +
  "reward model, so its predicted returns are its own.";
const EXPLOITS =
  "no surprise if the environment’s own reward is not what you teach; if it is, the agent exploits the reward model, " +
  "so watch the newest clips and label more.";
const KEPT = "The reward model likes the agent of before better than the one trained in";
const HOW_HELD_OUT = "Held out: on labels that it did not learn from.";
const HOW_BEFORE = "Beforehand: on each new batch, before it learned from it.";
const HOW_CONSISTENT =
  "How often a pair that was shown again, sides swapped, got the same answer. The reward model cannot know better.";
const MOST_TICKS = 9;
const PAD = 0.08; // of an axis, so that no point lies on its end

export const NAMES = [
  "charts/true_return", "charts/predicted_return", "charts/predicted_gain", "charts/true_gain", "charts/kept",
  "charts/SPS", "reward/loss", "reward/floor", "reward/held_out_loss", "reward/accuracy", "reward/held_out_accuracy",
  "reward/prequential_accuracy", "labels/consistency", "eval/episodes",
];

/**
 * Every chart: { id, title, how, keys: [[class, name], …], words, traces, layout, alarm } or null.
 * data: { rounds, series: by name, labels }; look: see plot.js.
 */
export function charts(data, look) {
  return {
    returns: returnsChart(data, look),
    training: trainingChart(data, look),
    accuracy: accuracyChart(data, look),
    loss: lossChart(data, look),
    consistency: consistencyChart(data, look),
    labels: labelsChart(data, look),
    speed: speedChart(data, look),
  };
}

function returnsChart({ rounds, series }, look) {
  const measured = rounds.filter((r) => r.mean_return !== null);
  if (measured.length < 2) return null;
  const judged = measured.filter((r) => r.mean !== null);
  const both = judged.length > 1;
  const xs = measured.map((r) => r.round);
  const truth = measured.map((r) => r.mean_return);
  const areas = both ? gapAreas(judged, truth) : [];
  const guesses = judged.map((r) => r.mean);
  const traces = [trueTrace(measured, look)];
  const keys = [["true", "true"]];
  if (both) {
    const places = { yaxis: "y2", mode: "lines+markers", hovertemplate: "predicted %{y:.3~g} a step" };
    traces.push(line("predicted", judged.map((r) => r.round), guesses, look.accent, places));
    keys.push(["predicted", "predicted"]);
  }
  if (areas.length) {
    traces.unshift(gapTrace(areas, truth, look));
    keys.push(["gap", "predicted above true"]);
  }
  const since = partedSince(measured, series["eval/episodes"]?.values.at(-1));
  return {
    title: "True and predicted return by round",
    how: both ? HOW_BOTH + (areas.length ? HOW_GAP : "") : HOW_TRUE,
    keys,
    words: `${words(["true", truth.at(-1)], both && ["predicted", guesses.at(-1)])} after ${roundName(xs.at(-1))}`,
    alarm: since === null ? "" : `Since ${since < 0 ? "the start" : roundName(since)} ${PARTED}`,
    traces,
    layout: {
      height: 300,
      xaxis: roundAxis(xs),
      yaxis: both ? rangeAxis(truth) : {},
      yaxis2: both ? rangeAxis(guesses) : undefined,
    },
  };
}

function trueTrace(measured, look) {
  const stds = measured.map((r) => r.std ?? 0);
  const visible = stds.some(Boolean);
  return line("true", measured.map((r) => r.round), measured.map((r) => r.mean_return), look.ink, {
    mode: "lines+markers",
    error_y: { type: "data", array: stds, visible, color: faint(look.ink, 0.3), thickness: 1, width: 0 },
    customdata: stds.map(number),
    hovertemplate: `true %{y:.4~g}${visible ? " ± %{customdata}" : ""}`,
  });
}

/** Drawn on the true return's axis, though it lies between lines of two. */
function gapTrace(areas, truth, look) {
  const [low, high] = [Math.min(...truth), Math.max(...truth)];
  const y = (share) => (high > low ? low + share * (high - low) : low + share - 0.5);
  const points = areas.flatMap((area) => [...area.map(([x, share]) => [x, y(share)]), [null, null]]);
  return {
    type: "scatter", name: "gap", x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "lines",
    fill: "toself", fillcolor: faint(look.right, 0.2), line: { width: 0 }, hoverinfo: "skip",
  };
}

/** In the common scale, where 0 is the lowest of each line and 1 its highest. */
export function gapAreas(judged, truth) {
  const lower = unit(judged.map((r) => r.mean_return), truth);
  return above(judged.map((r) => r.round), unit(judged.map((r) => r.mean)), lower);
}

function trainingChart({ series }, look) {
  const [truth, guess] = [series["charts/true_return"], series["charts/predicted_return"]];
  if (!(truth?.values.length > 1)) return null;
  const xs = steadySteps(truth);
  const traces = [line("true", xs, truth.values, look.ink, { hovertemplate: "true %{y:.4~g}" })];
  const both = guess?.values.length > 1;
  if (both) {
    const places = { yaxis: "y2", hovertemplate: "predicted %{y:.4~g}" };
    traces.push(line("predicted", steadySteps(guess), guess.values, look.accent, places));
  }
  const place = { type: "line", y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: look.line, width: 1 } };
  const begins = xs.filter((_, i) => i && truth.rounds[i] !== truth.rounds[i - 1]);
  return {
    title: "While training",
    how: HOW_TRAINING,
    keys: [["true", "true"], ...(both ? [["predicted", "predicted"]] : [])],
    words: words(["true", truth.values.at(-1)], both && ["predicted", guess.values.at(-1)]),
    alarm: [exploits(series, truth.rounds.at(-1)), kept(series, truth.rounds.at(-1))].filter(Boolean).join(" "),
    traces,
    layout: {
      shapes: begins.map((x) => ({ ...place, x0: x, x1: x })),
      xaxis: { title: { text: "steps" }, nticks: 5 },
      yaxis: { showgrid: false },
      yaxis2: both ? { tickmode: "auto" } : undefined,
    },
  };
}

/** In which round's training the predicted return rose while the true one fell, each by a standard deviation. */
function exploits(series, newest) {
  const [guess, truth] = ["charts/predicted_gain", "charts/true_gain"].map((name) => {
    const gains = series[name];
    return gains?.rounds.at(-1) === newest ? gains.values.at(-1) : 0;
  });
  if (!(guess > 1 && truth < -1)) return "";
  const by = `rose by ${guess.toFixed(1)} standard deviations and its true return fell by ${(-truth).toFixed(1)}`;
  return `While the agent of ${roundName(newest)} was trained, its predicted return ${by}: ${EXPLOITS}`;
}

/** Whether the agent of before was kept instead of the one that the newest round trained. */
function kept(series, newest) {
  const better = series["charts/kept"];
  if (!(better?.rounds.at(-1) === newest && better.values.at(-1) === 0)) return "";
  return `${KEPT} ${roundName(newest)}: that one is kept.`;
}

function accuracyChart({ series }, look) {
  return perRound(series, look, {
    title: "Reward model: how often it is right",
    how: "A coin is right half the time.",
    lines: [
      ["held out", "reward/held_out_accuracy", look.accent, "predicted", HOW_HELD_OUT],
      ["beforehand", "reward/prequential_accuracy", look.left, "before", HOW_BEFORE],
    ],
    yaxis: { range: [0, 1.04], tickformat: ".0%", tickvals: [0, 0.5, 1] },
    format: "%{y:.0%}",
    say: (value) => `${Math.round(100 * value)} %`,
  });
}

function lossChart({ series }, look) {
  const chart = perRound(series, look, {
    title: "Reward model: loss",
    how: "Lower is better. It cannot get below the shaded floor that ties put under it.",
    lines: [
      ["training", "reward/loss", look.ink, "true"],
      ["held out", "reward/held_out_loss", look.accent, "predicted"],
    ],
    yaxis: { rangemode: "tozero" },
    format: "%{y:.3f}",
    say: number,
  });
  const floor = chart && series["reward/floor"];
  if (!floor?.values.length) return chart;
  const { rounds, values } = lastOfRounds(floor);
  const shade = { fill: "tozeroy", fillcolor: faint(look.quiet, 0.16), hovertemplate: "floor %{y:.3f}" };
  const area = line("floor", rounds, values, look.line, shade);
  return { ...chart, traces: [area, ...chart.traces], keys: [...chart.keys, ["floor", "floor"]] };
}

function consistencyChart({ series }, look) {
  return perRound(series, look, {
    title: "Consistency of the labels",
    how: HOW_CONSISTENT,
    lines: [["same answer", "labels/consistency", look.left, "before"]],
    yaxis: { range: [0, 1.04], tickformat: ".0%", tickvals: [0, 0.5, 1] },
    format: "%{y:.0%}",
    say: (value) => `${Math.round(100 * value)} %`,
  });
}

function labelsChart({ labels }, look) {
  if (labels.times.length < 2) return null;
  const stairs = { line: { color: look.left, width: 2, shape: "hv" }, hovertemplate: "%{y} labels" };
  return {
    title: "Labels so far",
    how: "Pairs with a label, by the clock.",
    keys: [],
    words: `labels ${number(labels.counts.at(-1))}`,
    traces: [line("labels", labels.times.map(localTime), labels.counts, look.left, stairs)],
    layout: { xaxis: { type: "date", nticks: 4 }, yaxis: { rangemode: "tozero" } },
  };
}

function speedChart({ series }, look) {
  const speed = series["charts/SPS"];
  if (!(speed?.values.length > 1)) return null;
  const thin = { line: { color: look.quiet, width: 1.5 }, hovertemplate: "%{y:,.0f} steps/s" };
  return {
    title: "Speed of training",
    how: "Steps of the agent a second.",
    keys: [],
    words: `steps a second ${number(speed.values.at(-1))}`,
    traces: [line("steps a second", steadySteps(speed), speed.values, look.quiet, thin)],
    layout: { xaxis: { title: { text: "steps" }, nticks: 5 }, yaxis: { rangemode: "tozero" } },
  };
}

/** One point a round, for each of the lines that have any: [name, metric, colour, class of its key, what it is]. */
function perRound(series, look, { title, how, lines, yaxis, format, say }) {
  const known = lines
    .filter(([, metric]) => series[metric]?.values.length)
    .map(([name, metric, colour, key, lead]) => ({ name, colour, key, lead, ...lastOfRounds(series[metric]) }));
  if (!known.length) return null;
  const xs = [...new Set(known.flatMap((one) => one.rounds))].sort((a, b) => a - b);
  return {
    title,
    how: [...known.map((one) => one.lead), how].filter(Boolean).join(" "),
    keys: known.length > 1 || lines.length > 1 ? known.map((one) => [one.key, one.name]) : [],
    words: words(...known.map((one) => [one.name, one.values.at(-1), say])) + ` in ${roundName(xs.at(-1))}`,
    traces: known.map((one) =>
      line(one.name, one.rounds, one.values, one.colour, { mode: "lines+markers", hovertemplate: `${one.name} ${format}` }),
    ),
    layout: { xaxis: roundAxis(xs), yaxis },
  };
}

function line(name, x, y, color, more) {
  const own = { type: "scatter", mode: "lines", name, x, y, line: { color, width: 2 }, marker: { color, size: 6 } };
  return { ...own, ...more, hovertemplate: `${more.hovertemplate}<extra></extra>` };
}

function words(...parts) {
  return parts.filter(Boolean).map(([name, value, say = number]) => `${name} ${say(value)}`).join(", ");
}

/** Few enough marks, the first and the last among them. */
function roundAxis(rounds) {
  const [first, last] = [rounds[0], rounds.at(-1)];
  const every = Math.ceil((last - first + 1) / MOST_TICKS);
  const marks = rounds.filter((r) => r === first || r === last || ((last - r) % every === 0 && r - first >= every));
  const reach = Math.max(last - first, 1);
  return {
    title: { text: "round" }, unifiedhovertitle: { text: "round %{x}" }, range: [first - 0.04 * reach, last + 0.04 * reach], tickvals: marks,
    ticktext: marks.map((r) => (r < 0 ? "start" : String(r))), tickmode: "array",
  };
}

/** From the lowest to the highest value, which alone are marked. */
function rangeAxis(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const reach = high - low || 1;
  const from = high > low ? low : low - 0.5;
  const range = [from - PAD * reach, from + reach * (1 + PAD)];
  const marks = high > low ? [low, high] : [low];
  return { range, tickmode: "array", tickvals: marks, ticktext: marks.map(number), showgrid: false };
}

/** Plotly takes times as they are written. */
function localTime(seconds) {
  const date = new Date(seconds * 1000);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19).replace("T", " ");
}
