"use strict";

// The gallery of a run's report: its cards are sorted and filtered by the controls above it.

const ORDERS = {
  mistake: (a, b) => b.dataset.mistake - a.dataset.mistake,
  high: (a, b) => b.dataset.score - a.dataset.score,
  low: (a, b) => a.dataset.score - b.dataset.score,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
};

const control = (id) => document.getElementById(id);

function isWanted(card) {
  const outcomes = control("outcome").value;
  const kind = control("kind").value;
  const name = control("name").value.toLowerCase();
  return (!outcomes || outcomes.split(" ").includes(card.dataset.outcome))
    && (!kind || card.dataset.kind === kind)
    && card.dataset.name.toLowerCase().includes(name);
}

function updateGallery(gallery, cards) {
  cards.sort(ORDERS[control("order").value]);
  for (const card of cards) {
    card.hidden = !isWanted(card);
    gallery.append(card);
  }
  const shown = cards.filter((card) => !card.hidden).length;
  control("shown").textContent = `${shown} of ${cards.length} shown`;
}

const gallery = document.querySelector(".gallery");
if (gallery) {
  const cards = [...gallery.children];
  for (const id of ["order", "outcome", "kind", "name"]) {
    control(id).addEventListener("input", () => updateGallery(gallery, cards));
  }
  updateGallery(gallery, cards);
}

// The table of a sweep's report: a click on a column sorts by it, first downwards, then upwards.

function compareCells(a, b) {
  const difference = parseFloat(a.dataset.value) - parseFloat(b.dataset.value);
  return isNaN(difference) ? a.dataset.value.localeCompare(b.dataset.value) : difference;
}

function sortTable(table, head) {
  const sign = head.ariaSort === "descending" ? 1 : -1;
  for (const other of head.parentNode.cells) {
    other.ariaSort = null;
  }
  head.ariaSort = sign < 0 ? "descending" : "ascending";
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => sign * compareCells(a.cells[head.cellIndex], b.cells[head.cellIndex]));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (head) {
      sortTable(table, head);
    }
  });
}
