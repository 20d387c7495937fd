"use strict";
const PAGE = 12;  // exhibits that are shown at first, and more at each click
const chosen = (id) => document.getElementById(id).value;

function fits(element, segmenter, condition) {
  const segmenters = JSON.parse(element.dataset.segmenters);
  return (!segmenter || segmenters.includes(segmenter)) &&
    (!condition || element.dataset.condition === condition);
}

function showGallery(part, count) {
  const gallery = part.querySelector(".gallery");
  if (!gallery) return;
  const kind = part.querySelector(".switch [aria-pressed='true']").dataset.kind;
  let found = 0;
  for (const article of gallery.children) {
    const is_in = article.dataset.kind === kind &&
      fits(article, chosen("filter-segmenter"), chosen("filter-condition"));
    found += is_in ? 1 : 0;
    article.hidden = !is_in || found > count;
  }
  part.dataset.count = count;
  part.querySelector(".more button").hidden = found <= count;
  part.querySelector(".more span").textContent = `${Math.min(found, count)} of ${found}`;
}

function filter() {
  for (const part of document.querySelectorAll(".part")) {
    part.hidden = chosen("filter-section") && part.dataset.part !== chosen("filter-section");
    for (const row of part.querySelectorAll("tbody tr")) {
      row.hidden = !fits(row, chosen("filter-segmenter"), chosen("filter-condition"));
    }
    showGallery(part, PAGE);
  }
}

// A cell sorts by its number where it begins with one, else by its text; cells without come last.
function rank(row, column) {
  const text = row.children[column].textContent;
  const number = parseFloat(text.replace(/^< /, ""));
  return row.children[column].classList.contains("number") ? number : text;
}

function sort(head) {
  const column = Array.from(head.parentNode.children).indexOf(head);
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const missing = (value) => value === "" || Number.isNaN(value);
  const rows = Array.from(body.rows).sort((one, other) => {
    const [a, b] = [rank(one, column), rank(other, column)];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b :
      String(a).localeCompare(String(b), undefined, { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows);
  for (const row of rows) row.classList.remove("group");  // they no longer stand by condition
}

for (const head of document.querySelectorAll("th")) {
  head.querySelector("button").addEventListener("click", () => sort(head));
}
for (const select of document.querySelectorAll(".filters select")) {
  select.addEventListener("change", filter);
}
for (const part of document.querySelectorAll(".part")) {
  const kinds = part.querySelectorAll(".switch button");
  for (const button of kinds) {
    button.addEventListener("click", () => {
      for (const other of kinds) other.setAttribute("aria-pressed", other === button);
      showGallery(part, PAGE);
    });
  }
  const more = part.querySelector(".more button");
  if (more) more.addEventListener("click", () => showGallery(part, Number(part.dataset.count) + PAGE));
}
filter();
