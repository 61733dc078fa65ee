// Draws a chart when it comes near to the view, and again when the colour scheme changes. What is drawn stands in JSON behind its
// place; colours and fonts are the style sheet's. Plotly's script is loaded for the first one.

import { projection } from "./projection.js";

const { root, plotly, plotlyStyles } = document.body.dataset;
const CONFIG = { displayModeBar: false, responsive: true, showTips: false, displaylogo: false, plotlyServerURL: "" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
let loading;

const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        near.unobserve(target);
        show(target);
      }
    }
  },
  { rootMargin: "300px" },
);

export function watch(plot) {
  near.observe(plot);
}

async function show(plot) {
  try {
    const [library, figure] = await Promise.all([loaded(), wanted(plot)]);
    await draw(library, plot, figure);
    if (figure.scale) plot.before(scale(figure.scale));
    drawn.add({ plot, figure });
  } catch (error) {
    plot.textContent = `The chart cannot be drawn (${error.message}); what it says is below.`;
    plot.classList.add("failed");
  }
}

dark.addEventListener("change", async () => {
  const library = await loaded();
  for (const { plot, figure } of drawn) await draw(library, plot, figure);
});

function loaded() {
  loading ??= new Promise((done, fail) => {
    for (const id of plotlyStyles.split(" ")) {
      const place = document.createElement("template"); // in place of a style element, which the policy forbids
      place.id = id;
      document.head.append(place);
    }
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.id = "plotly.js-style-global"; // plotly adds its rules to it
    sheet.href = new URL("plotly.css", import.meta.url);
    sheet.onload = () => {
      const script = document.createElement("script");
      script.src = root + plotly;
      script.onload = () => done(window.Plotly);
      script.onerror = () => fail(new Error("its script did not come"));
      document.head.append(script);
    };
    sheet.onerror = () => fail(new Error("its style sheet did not come"));
    document.head.append(sheet);
  });
  return loading;
}

// The figure behind a place; that of a projection is made from the points that the service has.
async function wanted(plot) {
  const figure = JSON.parse(plot.nextElementSibling.textContent);
  return figure.kind === "projection" ? projection(figure, root) : figure;
}

async function draw(library, plot, figure) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const series = [1, 2, 3, 4, 5, 6].map((at) => colour(`series-${at}`));
  const axis = {
    gridcolor: colour("grid"),
    linecolor: colour("line"),
    zerolinecolor: colour("line"),
    zeroline: false,
    automargin: true,
    ticklabelposition: "outside",
    title: { standoff: 10, font: { size: 13, color: colour("soft") } },
    tickfont: { color: colour("soft") },
    fixedrange: !figure.zooms,
  };
  const look = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    colorway: series,
    margin: { l: 16, r: 12, t: 8, b: 16 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left", namelength: 40 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("ink") } },
    dragmode: figure.zooms ? "zoom" : false,
  };
  const asked = structuredClone(figure.layout);
  const layout = { ...look, ...asked, xaxis: merged(axis, asked.xaxis), yaxis: merged(axis, asked.yaxis) };
  const data = figure.data.map((trace, at) => ({ ...structuredClone(trace), ...themed(trace, series[at % series.length], colour) }));
  await library.react(plot, data, layout, CONFIG);
  if (figure.opens && !plot.dataset.opens) {
    plot.dataset.opens = "yes";
    plot.on("plotly_click", ({ points }) => {
      const { shiftKey, metaKey, ctrlKey } = window.event ?? {};
      const address = root + figure.opens + points[0].customdata[0];
      if (shiftKey || metaKey || ctrlKey) window.open(address, "_blank", "noopener");
      else location.assign(address);
    });
  }
}

// What the colours of a projection mean.
function scale([low, high]) {
  const bar = document.createElement("p");
  bar.className = "scale";
  bar.append(`slow, ${low.toFixed(1)}`, document.createElement("i"), `fast, ${high.toFixed(1)} characters a second`);
  return bar;
}

function merged(axis, asked = {}) {
  return { ...axis, ...asked, title: { ...axis.title, ...asked.title } };
}

// What of a trace depends on the scheme. A colour scale is from slow to fast speech.
function themed(trace, own, colour) {
  if (trace.marker?.color) {
    const scale = [[0, colour("slow")], [0.5, colour("middle")], [1, colour("fast")]];
    return { marker: { ...trace.marker, colorscale: scale } };
  }
  if (trace.type === "bar") return { marker: { color: own, opacity: 0.85 } };
  if (trace.guide) return { line: { ...trace.line, color: colour("soft") } };
  return { line: { ...trace.line, color: own }, marker: { ...trace.marker, color: own }, fillcolor: `${own}1f` };
}
