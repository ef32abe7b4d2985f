"use strict";

// Every text goes through a text node: what came from data is shown, never run.
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "circle", "text", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) made.style.setProperty(k, v);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const colour = (i) => `var(--c${i % 7})`;
const percent = (x) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(1)}`);
const known = (x) => x !== null && x !== undefined;

function figure(x, digits = 4) {
  if (!known(x)) return "–";
  if (x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e6)) {
    return Number(x.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
  }
  return x.toExponential(2);
}

function table(caption, headings, rows) {
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...headings.map((h) => element("th", { scope: "col" }, h)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, i) =>
        i === 0 ? element("th", { scope: "row" }, cell) : element("td", {}, cell)))))));
}

// What was packed as base64 of gzip of JSON.
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
