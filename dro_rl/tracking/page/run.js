// Puts the sections together from the data in the page.

const HEADLINE_LABELS = {
  em: "EM [%]", f1: "F1 [%]", "recall@1": "recall@1 [%]", "recall@3": "recall@3 [%]", "recall@5": "recall@5 [%]",
  gold_recall: "gold recall [%]", bound: "bound [nats]", reward: "reward",
};
const EVALUATION_CURVES = [
  ["em", "Exact match [%]", 100], ["f1", "F1 [%]", 100], ["bound", "Bound, ± standard error [nats]", 1],
  ["reward", "Reward of sampled selections (log-rewards in nats)", 1],
  ["effective_sample_size", "Effective sample size", 1], ["malformed", "Malformed selections [%]", 100],
  ["selector_entropy", "Selector entropy [nats]", 1],
];
const STEP_CURVES = [
  ["rollout/effective_sample_size", "Effective sample size in training"], ["rollout/largest_weight", "Largest weight"],
  ["reward/best", "Best log-reward of a group"], ["selector/loss", "Selector loss"], ["generator/loss", "Generator loss"],
  ["selector/grad_norm", "Selector gradient norm"], ["generator/grad_norm", "Generator gradient norm"],
  ["selector/logp_gap", "Staleness: log-probability gap of engine and selector [nats]"],
];
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const several = RUNS.length > 1;
const add = (id, ...children) => document.getElementById(id).append(...children.filter(Boolean));
const charts = (...found) => element("div", { class: "charts" }, ...found.filter(Boolean));
const overRuns = (points) => RUNS.map((run, i) => ({ name: run.name, colour: colour(i), points: points(run) }));
const note = (text) => element("p", { class: "note" }, text);

function summarise() {
  if (several) add("summary", legend(RUNS.map((r) => r.name)));
  for (const run of RUNS) {
    const last = run.evaluations.at(-1);
    const rows = run.headline.map((r) => {
      const show = ["bound", "reward"].includes(r.key) ? (x) => figure(x) : percent;
      const interval = known(r.low) ? `${signed(r.low, show)} to ${signed(r.high, show)}` : "–";
      const sure = known(r.low) && (r.low > 0 || r.high < 0);
      return [HEADLINE_LABELS[r.key], show(r.before), show(r.after),
        element("span", { class: sure ? (r.change > 0 ? "up" : "down") : "" }, known(r.change) ? signed(r.change, show) : "–"), interval];
    });
    add("summary", several ? element("h3", {}, run.name) : null, note(run.about),
      table(`${last.questions} held-out questions, greedy decoding; warm start and iteration ${last.iteration}`,
        ["metric", "before", "after", "change", "95 % interval"], rows));
  }
  add("summary", note("Intervals: bootstrap over questions, paired; a change is coloured where its interval leaves 0 out. They say nothing of other seeds."));
}

const signed = (x, show) => (x > 0 ? "+" : "") + show(x);

function drawCurves() {
  if (several) add("curves", legend(RUNS.map((r) => r.name)));
  add("curves", charts(
    ...EVALUATION_CURVES.map(([key, title, factor]) => lineChart({ title, xLabel: "iteration",
      series: overRuns((run) => run.evaluations.map((e) => {
        const value = known(e[key]) ? e[key] * factor : null;
        return key === "bound" && known(e.bound_se) ? [e.iteration, value, value - e.bound_se, value + e.bound_se] : [e.iteration, value];
      })) })),
    ...STEP_CURVES.map(([key, title]) => lineChart({ title, xLabel: "step",
      series: overRuns((run) => (run.steps[key] ?? []).map((v, i) => [run.steps.step[i], v])) }))));
}

function drawSelector() {
  for (const run of RUNS) {
    const recalls = ["recall@1", "recall@3", "recall@5", "gold_recall"];
    const ends = [run.movement[0], run.movement.at(-1)].filter((m, i, all) => all.indexOf(m) === i);
    const places = Array.from({ length: Math.max(...ends.map((m) => m.first.length)) }, (_, i) => i + 1);
    const weights = [run.weights[0], run.weights.at(-1)].filter((w, i, all) => w && all.indexOf(w) === i);
    add("selector", several ? element("h3", {}, run.name) : null, legend(recalls), charts(
      lineChart({ title: "Recall by rank [%]", xLabel: "iteration", series: recalls.map((key, i) => ({ name: key, colour: colour(i),
        points: run.evaluations.map((e) => [e.iteration, known(e[key]) ? 100 * e[key] : null]) })) }),
      lineChart({ title: "Selections unlike the warm start's [%]", xLabel: "iteration", series: [{ name: "changed", colour: colour(0), points: run.movement.map((m) => [m.iteration, 100 * m.changed]) }] }),
      barChart({ title: `Place of the first document [%]: ${ends.map(named).join(", ")}`, xLabel: "identifier", places,
        series: ends.map((m, i) => ({ name: named(m), colour: colour(i), values: m.first.map((v) => 100 * v) })) }),
      weights.length ? barChart({ title: `Selector weights: ${weights.map(named).join(", ")}`, xLabel: "weight from", places: weights[0].edges.slice(0, -1).map((e) => figure(e, 2)),
        series: weights.map((w, i) => ({ name: named(w), colour: colour(i), values: w.counts })) }) : null));
  }
  add("selector", note("Candidates are shuffled unless the recipe says otherwise, so a selector that reads puts its first choice at every place equally often."));
}

const named = (row) => (row.iteration === 0 ? "warm start" : `iteration ${row.iteration}`);

function drawTime() {
  for (const run of RUNS) {
    const rows = run.iterations;
    if (!rows.length) { add("time", note("No iteration has ended yet.")); continue; }
    const sum = (key) => rows.reduce((total, r) => total + (r[key] ?? 0), 0);
    const stages = [...new Set(rows.flatMap((r) => Object.keys(r).filter((k) => k.startsWith("time/"))))].map((k) => k.slice(5));
    stages.sort((a, b) => sum(`time/${b}`) - sum(`time/${a}`));
    const whole = stages.reduce((total, s) => total + sum(`time/${s}`), 0);
    add("time", several ? element("h3", {}, run.name) : null,
      table(`${rows.length} iterations in ${figure(whole)} s`, ["stage", "seconds", "share [%]", "tokens", "tokens/s", "MFU [%]"], stages.map((s) => {
        const seconds = sum(`time/${s}`), tokens = sum(`tokens/${s}`);
        const used = rows.reduce((total, r) => total + (r[`mfu/${s}`] ?? 0) * (r[`time/${s}`] ?? 0), 0);
        return [s, figure(seconds), percent(seconds / whole), tokens ? figure(tokens, 6) : "–", tokens ? figure(tokens / seconds) : "–", used ? percent(used / seconds) : "–"];
      })),
      legend(stages.slice(0, 7)),
      charts(barChart({ title: "Seconds by stage", xLabel: "iteration", places: rows.map((r) => r.iteration), stacked: true,
        series: stages.slice(0, 7).map((s, i) => ({ name: s, colour: colour(i), values: rows.map((r) => r[`time/${s}`] ?? 0) })) })),
      memoryTable(rows.at(-1)));
  }
}

function memoryTable(row) {
  const peaks = Object.entries(row).filter(([k]) => /^(gpu_)?memory\//.test(k));
  return peaks.length ? table("Peak memory of a process", ["process", "GiB"], peaks.map(([k, v]) => [k.replace("memory/", "").replace("gpu_", "GPU of ").replaceAll("_", " "), figure(v, 3)])) : null;
}

function showRecipes() {
  for (const run of RUNS) {
    add("recipe", several ? element("h3", {}, run.name) : null, element("pre", { tabindex: 0, "aria-label": `Recipe of ${run.name}` }, run.recipe));
  }
}

document.getElementById("title").textContent = DATA.title;
summarise();
drawCurves();
drawSelector();
add("rollouts", ...rolloutBrowser(RUNS));
drawTime();
showRecipes();
