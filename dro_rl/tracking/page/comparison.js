// A comparison: its tables, a curve an arm, and the way to each run's own report.

const DATA = JSON.parse(document.getElementById("data").textContent);
const add = (id, ...children) => document.getElementById(id).append(...children.filter(Boolean));
const note = (text) => element("p", { class: "note" }, text);

// An interval's star is told in colour too, by its sign.
function difference(cell) {
  const sure = cell.endsWith("*");
  return element("span", { class: sure ? (cell.startsWith("-") ? "down" : "up") : "" }, cell);
}

function drawComparison() {
  document.getElementById("title").textContent = DATA.title;
  document.querySelector("header h1").after(element("pre", { tabindex: 0, "aria-label": "Command" }, DATA.command));
  const { arms, differences, settings } = DATA;
  add("arms", ...(arms.rows.length ? [table("Held-out questions after the last iteration", arms.headings, arms.rows), note(DATA.notes[0])] : [note("No run has finished yet.")]));
  add("differences", ...(differences.rows.length
    ? [table("Paired differences", differences.headings, differences.rows.map((row) => row.map((cell, i) => (i > 1 ? difference(cell) : cell)))), note(DATA.notes[1])]
    : [note("No arm beside the first has finished runs yet.")]));
  const names = DATA.names; // an arm looks the same while others are still to come
  add("curves", legend(names), element("div", { class: "charts" }, ...DATA.figures.map((f) => lineChart({
    title: f.title, xLabel: "selections",
    series: f.curves.map((c) => ({ name: c.arm, colour: colour(names.indexOf(c.arm)), points: c.selections.map((x, i) => [x, c.mean[i], c.low[i], c.high[i]]) })),
  })).filter(Boolean)), note("Line: mean over the seeds that got so far. Band: from the lowest seed to the highest."));
  add("settings", settings.rows.length ? table("Settings that are not the same in all arms", settings.headings, settings.rows) : note("Nothing but the arms' names."));
  add("runs", table("Each run has a report of its own", ["run", "state"], DATA.runs.map((r) => [r.title, r.report ? element("a", { href: r.report }, "report") : r.error ?? "waiting"])));
}

drawComparison();
