// The live panel: asks for the service's counters each second while it is seen, and shows what became of them since.

const PERIOD_MS = 1000;
const KEPT = 60; // seconds in the picture
const panel = document.querySelector("[data-live]");
const whole = new Intl.NumberFormat("en");
const rates = [];
let last = null;

const bytes = (value) => {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return `${value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
};

const show = (name, text) => {
  const cell = panel.querySelector(`[data-show="${name}"]`);
  if (cell && cell.textContent !== text) cell.textContent = text;
};

const draw = () => {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, at) => `${(100 * (KEPT - rates.length + at)) / (KEPT - 1)},${38 - (36 * rate) / most}`);
  panel.querySelector("[data-line]").setAttribute("points", points.join(" "));
  show("most", `, at most ${whole.format(Math.round(Math.max(...rates)))}`);
};

const showRefusals = (refusals) => {
  const rows = panel.querySelectorAll("[data-refusal]");
  for (const row of rows) {
    const count = refusals[row.dataset.refusal] ?? 0;
    row.hidden = !count;
    row.querySelector("[data-count]").textContent = whole.format(count);
  }
  panel.querySelector("[data-none]").hidden = Object.keys(refusals).length > 0;
};

const update = (now) => {
  const passed = last && now.at_s - last.at_s;
  const counted = (name) => (passed > 0 && now[name] >= last[name] ? (now[name] - last[name]) / passed : null);
  const samples = counted("samples"), sent = counted("bytes");
  show("open_streams", whole.format(now.open_streams));
  show("samples", whole.format(now.samples));
  show("bytes", bytes(now.bytes));
  showRefusals(now.refusals);
  show("refused", whole.format(Object.values(now.refusals).reduce((sum, count) => sum + count, 0)));
  if (samples !== null) {
    show("samples_per_s", whole.format(Math.round(samples)));
    show("bytes_per_s", `${bytes(sent)}/s`);
    rates.push(samples);
    rates.splice(0, rates.length - KEPT);
    draw();
  }
  if (passed !== 0) last = now; // 0: what another one who looks on was told a moment ago
};

const ask = async () => {
  try {
    const reply = await fetch(panel.dataset.live, { cache: "no-store", headers: { Accept: "application/json" } });
    if (!reply.ok) throw new Error(`the service answered ${reply.status}`);
    update(await reply.json());
    show("state", "");
  } catch (error) {
    show("state", `These figures stand still: ${error.message}.`);
    last = null;
  }
};

const loop = async () => {
  if (document.visibilityState === "visible") await ask();
  else last = null; // what was sent meanwhile is not of one second
  setTimeout(loop, PERIOD_MS);
};

if (panel) loop();
