// Plotly, loaded when the first chart comes into view, and the look that all charts share.

const HEIGHT = 210;
const CONFIG = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false, doubleClick: false };

let loading = null;

/** Plotly itself; rejects where it cannot be had. */
export function loadPlotly(address) {
  loading ??= load(address).catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

/**
 * The page's security policy lets nobody insert a <style>. Plotly looks for a sheet of this id before it makes one, and
 * adds its rules to that; the map library inside it looks for an element of this long id, the mark of its own styles.
 */
async function load(address) {
  const probe = document.createElement("meta");
  probe.id = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";
  const sheet = document.createElement("link");
  Object.assign(sheet, { rel: "stylesheet", href: "/static/plot.css", id: "plotly.js-style-global" });
  document.head.append(probe);
  await loaded(sheet);
  const script = document.createElement("script");
  script.src = address;
  await loaded(script);
  return globalThis.Plotly;
}

function loaded(node) {
  return new Promise((resolve, reject) => {
    node.onload = resolve;
    node.onerror = () => {
      node.remove();
      reject(new Error(`${node.src ?? node.href} did not load`));
    };
    document.head.append(node);
  });
}

/** The page's colours and font, as they are now. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["bg", "surface", "sunken", "line", "ink", "quiet", "left", "right", "accent"];
  const colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return { ...colours, font: getComputedStyle(document.body).fontFamily };
}

/** #rrggbb with some transparency. */
export function faint(colour, share) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}

export function draw(plotly, node, { traces, layout = {} }, look) {
  const axis = {
    fixedrange: true, zeroline: false, linecolor: look.line, gridcolor: look.line, tickcolor: look.line,
    tickfont: { color: look.quiet }, title: { font: { color: look.quiet, size: 12 }, standoff: 6 },
  };
  const spike = { spikecolor: look.quiet, spikethickness: 1, spikedash: "solid" };
  const { xaxis, yaxis, yaxis2, ...rest } = layout;
  const whole = {
    height: HEIGHT, margin: { l: 46, r: yaxis2 ? 50 : 14, t: 10, b: 40 }, showlegend: false, dragmode: false,
    paper_bgcolor: look.bg, plot_bgcolor: look.bg, hovermode: "x unified", hoverdistance: -1,
    font: { family: look.font, size: 12, color: look.quiet },
    hoverlabel: { bgcolor: look.surface, bordercolor: look.line, font: { family: look.font, size: 13, color: look.ink } },
    xaxis: merge(axis, { showgrid: false, showline: true, ...spike, ...xaxis }),
    yaxis: merge(axis, { nticks: 4, ...yaxis }),
    ...(yaxis2 && { yaxis2: merge(axis, { nticks: 4, overlaying: "y", side: "right", showgrid: false, ...yaxis2 }) }),
    ...rest,
  };
  return plotly.react(node, traces, whole, CONFIG);
}

function merge(axis, own) {
  return { ...axis, ...own, title: { ...axis.title, ...own.title }, tickfont: { ...axis.tickfont, ...own.tickfont } };
}
