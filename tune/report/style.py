"""How the page of a comparison looks, and what it does: sort tables, and find a trial in all pictures."""

CSS = """
:root { --ink: #262c33; --soft: #68727d; --line: #e1e5ea; --best: #0b7a4b; --baseline: #d9730d; --failed: #c4314b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 28px 32px 60px; }
h1 { font-size: 26px; font-weight: 650; margin: 0 0 4px; }
h2 { font-size: 21px; font-weight: 650; margin: 44px 0 4px; }
h3 { font-size: 17px; font-weight: 650; margin: 0 0 2px; }
h4 { font-size: 14px; font-weight: 600; margin: 16px 0 4px; }
p { margin: 4px 0 10px; max-width: 110ch; }
.note { color: var(--soft); font-size: 13.5px; }
.summary { font-size: 16.5px; max-width: 100ch; }
.caveat { background: #fff6e6; border-left: 3px solid var(--baseline); padding: 6px 12px; font-size: 13.5px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 22px 14px; margin: 16px 0; }
a { color: #2a5d9c; text-decoration: none; }
a:hover { text-decoration: underline; }
code { font: 12.5px/1.4 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.table { overflow: auto; max-height: 640px; }
thead th { position: sticky; top: 0; background: #fff; }
@media print { .table { max-height: none; } }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom;
  border-bottom: 1px solid #aeb6bf; }
th.word, td.word { text-align: left; }
td.long { white-space: normal; text-align: left; min-width: 40ch; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.best { color: var(--best); font-weight: 650; }
tr.top td { background: #eef7f2; }
tr.baseline td { background: #fdf4ea; }
tr.hot td { background: #fff3a8; }
tr.less td { color: var(--soft); }
.badge { font-size: 11.5px; border-radius: 9px; padding: 1px 8px; margin-left: 6px; color: #fff; }
.badge.best { background: var(--best); }
.badge.baseline { background: var(--baseline); }
.badge.front { background: var(--ink); }
.failed { color: var(--failed); }
.plot svg { display: block; width: 100%; height: auto; }
.plot text { font-family: inherit !important; }
.trial { cursor: pointer; }
.hot path, .hot use { stroke: #111 !important; stroke-width: 3px !important; stroke-opacity: 1 !important; }
.pair { display: flex; flex-wrap: wrap; gap: 20px; }
.pair figure { margin: 0; flex: 1 1 500px; max-width: 760px; }
.pair img { width: 100%; height: auto; border: 1px solid var(--line); }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
@media print { body { background: #fff; } section { break-inside: avoid; border: none; padding: 8px 0; } }
"""

JAVASCRIPT = """
document.addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (!button) return;
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[head.cellIndex].dataset.value;
  const order = (one, other) => {
    const a = value(one), b = value(other);
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return down ? -difference : difference;
  };
  body.append(...[...body.rows].sort(order));
});
let hot = null;
document.addEventListener("mouseover", event => {
  const found = event.target.closest("[data-trial]");
  const trial = found ? found.dataset.trial : null;
  if (trial === hot) return;
  for (const each of document.querySelectorAll(".hot")) each.classList.remove("hot");
  if (trial) for (const each of document.querySelectorAll(`[data-trial="${trial}"]`)) each.classList.add("hot");
  hot = trial;
});
"""
