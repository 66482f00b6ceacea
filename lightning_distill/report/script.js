"use strict";

// Tables: a click on a heading sorts by its column, numbers numerically; empty cells stay last.
const collator = new Intl.Collator(undefined, { numeric: true });

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function sort(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const up = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
  const numeric = [...values.values()].every((v) => v === "" || !Number.isNaN(Number(v)));
  rows.sort((first, second) => {
    const [a, b] = [values.get(first), values.get(second)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? a - b : collator.compare(a, b);
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sorts")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) =>
    heading.querySelector("button").addEventListener("click", () => sort(table, column))
  );
}

// The filter keeps the rows that contain each of its words.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const texts = rows.map((row) =>
    [row.dataset.name, ...[...row.cells].map((cell) => cell.textContent)].join(" ").toLowerCase()
  );
  const count = input.closest(".filter").querySelector("output");
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, n) => (row.hidden = !words.every((word) => texts[n].includes(word))));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} jobs`;
  };
  input.addEventListener("input", show);
  show(); // a browser may restore the input after a reload
}

// Commands
for (const button of document.querySelectorAll(".command button")) {
  const pre = button.parentElement.querySelector("pre");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
    } catch {
      getSelection().selectAllChildren(pre);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
}

// Figures: plotly, most of the page's size, is parsed when the first figure comes into view.
const dark = matchMedia("(prefers-color-scheme: dark)");

// Replaces each string `var(--name)` by the color of that name in the style.
function resolveColors(node, style) {
  if (Array.isArray(node)) return node.map((item) => resolveColors(item, style));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, resolveColors(v, style)]));
  }
  const name = typeof node === "string" && /^var\((--[\w-]+)\)$/.exec(node);
  return name ? style.getPropertyValue(name[1]).trim() : node;
}

// On a phone, names are placed above their lines, and long legends are hidden.
function fitToPhone(data, layout) {
  Object.assign(layout.margin, { l: 48, r: 8 });
  if (layout.yaxis.automargin) {
    const names = [...new Set(data.flatMap((trace) => trace.y))];
    const place = { xref: "paper", x: 0, xanchor: "left", yanchor: "bottom", yshift: 4 };
    layout.annotations = names.map((name) => ({ ...place, y: name, text: name, showarrow: false }));
    layout.yaxis.showticklabels = false;
    layout.margin.l = 8;
    layout.height = 130 + 44 * names.length;
  }
  layout.showlegend = data.filter((trace) => trace.showlegend !== false && trace.name).length < 6;
  layout.showlegend &&= data.length > 1;
}

function draw(box) {
  if (!window.Plotly) {
    const code = document.createElement("script");
    code.textContent = document.getElementById("plotly").textContent;
    document.head.append(code);
  }
  const style = getComputedStyle(document.documentElement);
  const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
  const { data, layout } = resolveColors(figure, style);
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style.getPropertyValue("--muted").trim(), family: "system-ui, sans-serif" },
  });
  Object.assign(layout.hoverlabel, {
    bgcolor: style.getPropertyValue("--soft").trim(),
    bordercolor: style.getPropertyValue("--muted").trim(),
    font: { color: style.getPropertyValue("--ink").trim() },
  });
  if (box.clientWidth < 600) fitToPhone(data, layout);
  box.style.minHeight = "";
  Plotly.react(box, data, layout, { responsive: true, displayModeBar: false });
  box.dataset.drawn = "";
}

const boxes = [...document.querySelectorAll("[data-figure]")];
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      draw(target);
    }
  },
  { rootMargin: "300px" }
);
boxes.forEach((box) => watcher.observe(box));
dark.addEventListener("change", () => boxes.filter((b) => "drawn" in b.dataset).forEach(draw));
addEventListener("beforeprint", () => boxes.filter((b) => !("drawn" in b.dataset)).forEach(draw));
