// Where the reward model and the true reward part: arithmetic alone, without the page.

const CLEARLY = 0.15; // of the line's whole range
const ERRORS = 2; // standard errors by which the true return must have fallen
const EPISODES = 10; // of an evaluation, where it is not known

/** Values on a scale on which the lowest of all is 0 and the highest 1; where these are alike: one half. */
export function unit(values, all = values) {
  const low = Math.min(...all);
  const high = Math.max(...all);
  return values.map((v) => (high > low ? (v - low) / (high - low) : 0.5));
}

/**
 * Where the upper line stands above the lower one: a polygon [[x, y], …] for each stretch, from crossing to crossing.
 * Both lines are straight between their points and share xs.
 */
export function above(xs, upper, lower) {
  const points = []; // [x, upper, lower], the crossings among them
  xs.forEach((x, i) => {
    const gap = upper[i] - lower[i];
    const before = i ? upper[i - 1] - lower[i - 1] : 0;
    if (before * gap < 0) {
      const share = before / (before - gap);
      const y = upper[i - 1] + share * (upper[i] - upper[i - 1]);
      points.push([xs[i - 1] + share * (x - xs[i - 1]), y, y]);
    }
    points.push([x, upper[i], lower[i]]);
  });
  const areas = [];
  let stretch = [];
  for (let i = 1; i <= points.length; i += 1) {
    const [from, to] = [points[i - 1], points[i]];
    const isAbove = to && from[1] + to[1] > from[2] + to[2]; // between two of them the lines do not cross
    if (isAbove) stretch.push(...(stretch.length ? [to] : [from, to]));
    if (stretch.length && (!isAbove || to[1] === to[2])) {
      areas.push(around(stretch));
      stretch = [];
    }
  }
  return areas;
}

function around(stretch) {
  const back = stretch.filter(([, high, low]) => high > low).reverse();
  return [...stretch.map(([x, high]) => [x, high]), ...back.map(([x, , low]) => [x, low])];
}

/** The rounds that led to the newest one, oldest first: who went back has left the others behind. */
export function lineage(rounds) {
  const known = new Map(rounds.map((round) => [round.round, round]));
  const line = [];
  let round = rounds.at(-1);
  while (round && !line.includes(round)) {
    line.unshift(round);
    round = round.from === null ? null : known.get(round.from);
  }
  return line;
}

/**
 * The round since which, over two rounds or more, the predicted return rose and the true one fell, both clearly; or
 * null. rounds: [{ round, from, mean, mean_return, std }], oldest first; episodes: of an evaluation.
 */
export function partedSince(rounds, episodes = EPISODES) {
  const line = lineage(rounds).filter((r) => r.mean !== null && r.mean_return !== null);
  const span = (values) => Math.max(...values) - Math.min(...values);
  const rise = CLEARLY * span(line.map((r) => r.mean));
  const fall = CLEARLY * span(line.map((r) => r.mean_return));
  const last = line.at(-1);
  for (let i = 0; i + 2 < line.length; i += 1) {
    const [since, later] = [line[i], line.slice(i + 1)];
    const error = Math.hypot(since.std ?? 0, last.std ?? 0) / Math.sqrt(episodes);
    const peaked = later.every((r) => r.mean_return <= since.mean_return && r.mean >= since.mean);
    const fell = since.mean_return - last.mean_return;
    if (peaked && last.mean - since.mean > rise && fell > fall && fell > ERRORS * error) return since.round;
  }
  return null;
}

/** Steps that go on from round to round, though who went back to an earlier agent counts from there again. */
export function steadySteps({ rounds, steps }) {
  let [shift, end] = [0, 0];
  return steps.map((step, i) => {
    if (i && rounds[i] !== rounds[i - 1] && step + shift < end) shift = end - steps[i];
    end = step + shift;
    return end;
  });
}

/** { rounds, values } with the last value of every round alone. */
export function lastOfRounds({ rounds, values }) {
  const last = new Map(rounds.map((round, i) => [round, values[i]]));
  return { rounds: [...last.keys()], values: [...last.values()] };
}
