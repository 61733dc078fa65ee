// The picture of a split: its points come from the service as JSON, so that the page itself stays small.

const SHOWN = 90;

export async function projection({ href, sample }, root) {
  const reply = await fetch(root + href, { headers: { Accept: "application/json" } });
  if (!reply.ok || reply.status === 202) throw new Error(`the service answered ${reply.status}; reload the page`);
  const { points, explained_variance_ratio: shares } = await reply.json();
  const rates = points.map(({ cps }) => cps);
  const sorted = Float64Array.from(rates).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const axis = (which) => (shares ? `Component ${which + 1} (${(100 * shares[which]).toFixed(1)} % of the variance)` : `Component ${which + 1}`);
  return {
    opens: sample,
    scale: [at(0.02), at(0.98)],
    zooms: matchMedia("(pointer: fine)").matches, // a finger scrolls the page
    data: [
      {
        type: "scatter",
        mode: "markers",
        x: points.map(({ x }) => x),
        y: points.map(({ y }) => y),
        customdata: points.map(({ index, file_path }) => [index, label(file_path)]),
        text: rates.map((cps) => cps.toFixed(2)),
        hovertemplate: "%{customdata[1]}<br>%{text} characters a second<extra></extra>",
        marker: {
          color: rates,
          cmin: at(0.02), // a few odd rates must not take all of the colours
          cmax: at(0.98),
          size: points.length > 1500 ? 5 : 7,
          opacity: 0.8,
          showscale: false, // plotly's sets a style that the policy forbids
        },
      },
    ],
    layout: { xaxis: { title: { text: axis(0) } }, yaxis: { title: { text: axis(1) } }, showlegend: false },
  };
}

// A path of others for a label: what would not be seen as escapes, mark-up of plotly's as text, and the middle left out where it is long.
function label(path) {
  const plain = path.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
  const short = plain.length <= SHOWN ? plain : `${plain.slice(0, SHOWN / 3)}…${plain.slice(-((2 * SHOWN) / 3))}`;
  return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
