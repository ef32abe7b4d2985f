// Charts: an SVG that says what it shows, a read-out under the pointer, and the figures as a table.

const CHART = { width: 360, height: 200, left: 46, right: 10, top: 8, bottom: 30 };

// Round numbers that cover a range.
function ticks(low, high, count = 4) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  return [low, high];
}

function axes(xs, ys, xLabel, xTicks) {
  const { width, height, left, right, top, bottom } = CHART;
  const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (width - left - right);
  const y = (v) => height - bottom - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * (height - top - bottom);
  const marks = ticks(...ys).map((v) => element("g", {},
    element("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
    element("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, figure(v, 3))));
  for (const v of xTicks) marks.push(element("text", { x: x(v), y: height - bottom + 14, "text-anchor": "middle" }, figure(v, 4)));
  marks.push(element("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel));
  return { x, y, marks };
}

// series: [{name, colour, points: [[x, y, low?, high?], ...]}], without points that have no y.
function lineChart({ title, xLabel, series }) {
  const shown = series.map((s) => ({ ...s, points: s.points.filter((p) => known(p[1])) })).filter((s) => s.points.length);
  if (!shown.length) return null;
  const xs = range(shown.flatMap((s) => s.points.map((p) => p[0])));
  const ys = range(shown.flatMap((s) => s.points.flatMap((p) => p.slice(1).filter(known))));
  const whole = ticks(...xs, 5).filter((v) => Number.isInteger(v));
  const { x, y, marks } = axes(xs, ys, xLabel, whole);
  const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  for (const s of shown) {
    const band = s.points.filter((p) => known(p[2]));
    if (band.length > 1) {
      const edge = [...band.map((p) => [p[0], p[3]]), ...band.map((p) => [p[0], p[2]]).reverse()];
      marks.push(element("path", { d: path(edge) + "Z", style: { fill: s.colour, opacity: "0.18" } }));
    }
    marks.push(element("path", { d: path(s.points), fill: "none", "stroke-width": 2, style: { stroke: s.colour } }));
    if (s.points.length <= 30) {
      for (const p of s.points) marks.push(element("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.5, style: { fill: s.colour } }));
    }
  }
  const places = [...new Set(shown.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  const values = (at) => shown.map((s) => s.points.find((p) => p[0] === at)?.[1]);
  const tell = (at) => `${xLabel} ${figure(at)}: ` + shown.map((s, i) => (shown.length > 1 ? `${s.name} ` : "") + figure(values(at)[i])).join(", ");
  const toValue = (pixel) => xs[0] + ((pixel - CHART.left) / (CHART.width - CHART.left - CHART.right)) * (xs[1] - xs[0]);
  return chart(title, marks, shown.map((s) => `${s.name}: from ${figure(s.points[0][1])} to ${figure(s.points.at(-1)[1])}`).join("; "),
    (pixel) => tell(places.reduce((best, p) => (Math.abs(p - toValue(pixel)) < Math.abs(best - toValue(pixel)) ? p : best))),
    table(title, [xLabel, ...shown.map((s) => s.name)], places.map((p) => [figure(p), ...values(p).map((v) => figure(v))])));
}

// Bars side by side at each place, or stacked: series: [{name, colour, values: [one a place]}].
function barChart({ title, xLabel, places, series, stacked = false }) {
  const heights = places.map((_, i) => series.map((s) => s.values[i] ?? 0));
  const tops = stacked ? heights.map((h) => h.reduce((a, b) => a + b, 0)) : heights.flat();
  if (!tops.length) return null;
  const { x, y, marks } = axes([-0.5, places.length - 0.5], [0, Math.max(...tops) || 1], xLabel, []);
  const slot = (CHART.width - CHART.left - CHART.right) / places.length;
  const every = Math.ceil(places.length / 10);
  heights.forEach((column, i) => {
    let base = 0;
    column.forEach((height, j) => {
      const w = (slot * 0.8) / (stacked ? 1 : series.length);
      const left = x(i) - slot * 0.4 + (stacked ? 0 : j * w);
      marks.push(element("rect", { x: left, width: Math.max(w, 0.5), y: y(base + height), height: Math.max(y(base) - y(base + height), 0), style: { fill: series[j].colour } }));
      if (stacked) base += height;
    });
    if (i % every === 0) marks.push(element("text", { x: x(i), y: CHART.height - CHART.bottom + 14, "text-anchor": "middle" }, String(places[i])));
  });
  const at = (pixel) => Math.min(places.length - 1, Math.max(0, Math.floor((pixel - CHART.left) / slot)));
  const tell = (i) => `${xLabel} ${places[i]}: ` + series.map((s) => `${series.length > 1 ? s.name + " " : ""}${figure(s.values[i] ?? 0, 3)}`).join(", ");
  return chart(title, marks, `bars by ${xLabel}`, (pixel) => tell(at(pixel)),
    table(title, [xLabel, ...series.map((s) => s.name)], places.map((p, i) => [String(p), ...series.map((s) => figure(s.values[i] ?? 0))])));
}

function chart(title, marks, summary, read, figures) {
  const readout = element("p", { class: "readout" });
  const drawing = element("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": `${title}. ${summary}` }, ...marks);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    readout.textContent = read(((event.clientX - box.left) / box.width) * CHART.width);
  });
  drawing.addEventListener("pointerleave", () => { readout.textContent = ""; });
  return element("figure", {}, element("figcaption", {}, title), drawing, readout,
    element("details", {}, element("summary", {}, "Figures"), figures));
}

function legend(names) {
  return element("ul", { class: "legend" }, ...names.map((name, i) => element("li", { style: { "--colour": colour(i) } }, name)));
}
