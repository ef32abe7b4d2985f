// The rollout browser: a list of questions, and one of them with what became of it by iteration.

const BROWSER_FILTERS = {
  all: ["all", () => true],
  wrong: ["answer wrong now", (q) => q.views.at(-1).em === 0],
  right: ["answer right now", (q) => q.views.at(-1).em === 1],
  learned: ["wrong at first, right now", (q) => q.views[0].em === 0 && q.views.at(-1).em === 1],
  lost: ["right at first, wrong now", (q) => q.views[0].em === 1 && q.views.at(-1).em === 0],
  moved: ["selection changed", (q) => q.views[0].greedy && String(q.views[0].greedy) !== String(q.views.at(-1).greedy)],
  missed: ["a gold document missed", (q) => picks(q.views.at(-1)).some((p) => missesGold(q.views.at(-1), p))],
  malformed: ["a malformed selection", (q) => q.views.some((v) => v.malformed || v.samples.some((s) => s.malformed))],
};
const OF_ANSWERS = ["wrong", "right", "learned", "lost", "moved"]; // which training does not ask for

const picks = (view) => (view.greedy ? [view.greedy] : view.samples.map((s) => s.documents));
const missesGold = (view, documents) => view.candidates.some(([, gold], i) => gold && !documents.includes(i));

function rolloutBrowser(runs) {
  const state = { block: null, shown: [], question: null, view: 0 };
  const loaded = new Map();
  const list = element("ul", { class: "questions", "aria-label": "Questions" });
  const detail = element("div", { class: "detail", "aria-live": "polite" });
  const count = element("p", { class: "note", role: "status" });
  const runChoice = choice(runs.map((r, i) => [String(i), r.name]));
  const source = choice([["held-out", "held-out"], ["training", "training"]]);
  const filter = choice(Object.entries(BROWSER_FILTERS).map(([key, [label]]) => [key, label]));
  const search = element("input", { type: "search", placeholder: "question, answer, document" });

  async function load() {
    const id = `${source.value}-${runChoice.value}`;
    list.replaceChildren();
    count.textContent = "unpacking…";
    if (!loaded.has(id)) {
      const block = await unpack(id);
      for (const q of block.questions) {
        const titles = q.views[0].candidates.map(([d]) => block.documents[d][0]);
        q.text = [q.question, q.id, ...q.answers, ...titles, ...q.views.map((v) => v.answer ?? "")].join("\n").toLowerCase();
      }
      loaded.set(id, block);
    }
    if (id !== `${source.value}-${runChoice.value}`) return; // another was chosen meanwhile
    state.block = loaded.get(id);
    for (const option of filter.options) option.hidden = option.disabled = source.value === "training" && OF_ANSWERS.includes(option.value);
    if (filter.selectedOptions[0].disabled) filter.value = "all";
    state.question = null;
    refresh();
  }

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = BROWSER_FILTERS[filter.value][1];
    state.shown = state.block.questions.filter((q) => fits(q) && words.every((w) => q.text.includes(w)));
    const { questions, complete } = state.block;
    count.textContent = `${state.shown.length} of ${questions.length} questions` + (complete ? "" : " (more are in the run directory)");
    list.replaceChildren(...state.shown.map((q) => element("li", {}, questionButton(q))));
    const kept = state.shown.includes(state.question) ? state.question : state.shown[0];
    kept ? open(kept, kept === state.question ? state.view : kept.views.length - 1) : detail.replaceChildren(element("p", {}, "No question fits."));
  }

  // Another question at the iteration that is shown, or the last one before it that has it.
  function openAlike(q) {
    const { iteration } = state.question.views[state.view];
    open(q, Math.max(0, q.views.findLastIndex((v) => v.iteration <= iteration)));
  }

  function questionButton(q) {
    const last = q.views.at(-1);
    const outcome = known(last.em) ? (last.em ? "right" : `F1 ${percent(last.f1)}`) : `${last.samples.length} selections`;
    const button = element("button", { type: "button", onclick: () => openAlike(q) }, q.question, element("small", {}, `${q.id} · ${outcome}`));
    q.button = button;
    return button;
  }

  function open(question, view) {
    state.question?.button?.removeAttribute("aria-current");
    state.question = question;
    state.view = view;
    question.button.setAttribute("aria-current", "true");
    detail.replaceChildren(...questionDetail(state.block, question, view, (next) => {
      open(question, next);
      detail.querySelector("[data-iteration]").focus();
    }));
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = state.shown[state.shown.indexOf(state.question) + step];
    if (next) { openAlike(next); next.button.focus(); }
  });
  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  filter.addEventListener("change", refresh);
  for (const control of [runChoice, source]) control.addEventListener("change", load);
  load();
  const labelled = (text, control) => element("label", {}, text, control);
  return [
    element("div", { class: "controls" }, runs.length > 1 ? labelled("Run", runChoice) : null, labelled("Questions", source), labelled("Show", filter), labelled("Search", search)),
    count, element("div", { class: "browser" }, list, detail),
  ];
}

function choice(options) {
  return element("select", {}, ...options.map(([value, label]) => element("option", { value }, label)));
}

function questionDetail(block, question, at, go) {
  const view = question.views[at];
  const iterations = choice(question.views.map((v, i) => [String(i), v.iteration === 0 ? "warm start" : `iteration ${v.iteration}`]));
  iterations.value = String(at);
  iterations.dataset.iteration = "";
  iterations.setAttribute("aria-label", "Iteration");
  iterations.addEventListener("change", () => go(Number(iterations.value)));
  const step = (by, label) => element("button", { type: "button", disabled: !question.views[at + by], onclick: () => go(at + by) }, label);
  return [
    element("h3", {}, question.question),
    element("p", { class: "note" }, `${question.id} · reference: ${question.answers.join(" | ")}`),
    element("div", { class: "controls" }, step(-1, "‹ earlier"), iterations, step(1, "later ›")),
    ...(known(view.greedy) ? greedyLines(view) : []),
    samplesTable(view),
    element("h3", {}, "Candidates"),
    candidateList(block, view),
  ];
}

function greedyLines(view) {
  const right = view.em === 1;
  if (!known(view.answer)) return [element("p", {}, `Selected, reward of samples ${figure(view.reward)}: `, ...documentChips(view, view.greedy))];
  return [
    element("p", {}, "Answer ", element("strong", { class: right ? "up" : "down" }, view.answer || "(empty)"), right ? " – right" : ` – F1 ${percent(view.f1)}`, `, bound ${figure(view.bound)} nats`),
    element("p", {}, "from ", ...documentChips(view, view.greedy)),
  ];
}

function documentChips(view, documents) {
  if (!documents.length) return ["no document"];
  return documents.map((d) => {
    const gold = view.candidates[d][1];
    return element("span", { class: gold ? "chip gold" : "chip" }, `[${d + 1}]${gold ? " ★" : ""}`);
  });
}

// Equal selections stand once, with how often they were drawn.
function samplesTable(view) {
  const groups = new Map();
  for (const s of view.samples) {
    const key = s.text ?? `${s.documents}|${s.logp}`; // of held-out samples the text is not kept
    groups.has(key) ? groups.get(key).push(s) : groups.set(key, [s]);
  }
  const rows = [...groups.values()].map((g) => ({ ...g[0], times: g.length, weight: g.reduce((sum, s) => sum + (s.weight ?? 0), 0) }));
  rows.sort((a, b) => b.weight - a.weight);
  const most = Math.max(...rows.map((r) => Math.abs(r.weight)), 1e-9);
  const likeliest = Math.max(...rows.map((r) => Math.exp(r.logp)), 1e-9);
  const made = table(`${view.samples.length} selections sampled; ★ marks gold documents`, ["selection", "drawn", ...(known(view.answer) ? ["log p(y) [nats]", "DRO's weight"] : ["log-reward", "weight"]), "probability"], rows.map((r) => [
    element("span", {}, ...documentChips(view, r.documents), r.malformed ? element("span", { class: "mark", title: r.text }, `malformed: ${r.text}`) : null),
    `${r.times}×`, known(r.log_reward) ? figure(r.log_reward) : "−∞",
    bar(r.weight, most), bar(Math.exp(r.logp), likeliest)]));
  made.classList.add("samples");
  return made;
}

function bar(value, largest) {
  return element("span", { class: value < 0 ? "bar negative" : "bar" }, element("span", {}, figure(value, 3)), element("i", { style: { width: `${(100 * Math.abs(value)) / largest}%` } }));
}

function candidateList(block, view) {
  const chosen = view.greedy ?? view.samples.flatMap((s) => s.documents);
  return element("ol", { class: "candidates" }, ...view.candidates.map(([d, gold, score], i) => {
    const [title, text] = block.documents[d];
    const names = [gold ? "gold" : "", chosen.includes(i) ? "picked" : ""].join(" ");
    const share = view.samples.length ? view.samples.filter((s) => s.documents.includes(i)).length / view.samples.length : 0;
    return element("li", { class: names },
      element("p", {}, element("strong", {}, `[${i + 1}] ${title}`), " ", gold ? element("span", { class: "mark" }, "★ gold") : null,
        element("span", { class: "note" }, ` ${known(score) ? `retriever ${figure(score, 3)}, ` : ""}in ${percent(share)} % of the samples`)),
      element("p", {}, text));
  }));
}
