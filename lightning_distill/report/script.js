"use strict";

// Tables: a click on a column's head sorts by it, numbers as numbers; empty cells stay last.
const collator = new Intl.Collator(undefined, { numeric: true });

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
  const numeric = [...values.values()].every((v) => v === "" || !Number.isNaN(Number(v)));
  rows.sort((one, other) => {
    const [a, b] = [values.get(one), values.get(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? a - b : collator.compare(a, b);
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sorts")) {
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sort(table, column))
  );
}

// The filter leaves the rows that hold every word of it.
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
  show(); // a browser may bring back what was typed before
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

// Figures: plotly is most of the page, and is read when the first figure comes into view.
const dark = matchMedia("(prefers-color-scheme: dark)");

function coloured(node, style) {
  if (Array.isArray(node)) return node.map((one) => coloured(one, style));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, coloured(v, style)]));
  }
  const name = typeof node === "string" && /^var\((--[\w-]+)\)$/.exec(node);
  return name ? style.getPropertyValue(name[1]).trim() : node;
}

// On a phone names stand above their lines, and a long legend would leave no room for the rest.
function fit(data, layout) {
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
  const said = JSON.parse(document.getElementById(box.dataset.figure).textContent);
  const { data, layout } = coloured(said, style);
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
  if (box.clientWidth < 600) fit(data, layout);
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
