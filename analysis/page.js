"use strict";

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") {
    return (Number.isNaN(a) - Number.isNaN(b)) || a - b;
  }
  return String(a).localeCompare(String(b));
}

function sort(table, header, column) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(value(a, column), value(b, column)) * (down ? -1 : 1));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header, column));
    header.append(button);
  });
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const cells = [...gallery.querySelectorAll("details")];
  const bar = document.createElement("div");
  bar.className = "choose";
  const selects = gallery.dataset.axes.split(" ").filter(Boolean).map((axis) => {
    const select = document.createElement("select");
    select.dataset.axis = axis;
    select.add(new Option("all", ""));
    for (const choice of new Set(cells.map((cell) => cell.dataset[axis]))) select.add(new Option(choice, choice));
    const label = document.createElement("label");
    label.append(axis, select);
    bar.append(label);
    return select;
  });
  const opener = document.createElement("button");
  opener.textContent = "open or close these";
  bar.append(opener);
  gallery.prepend(bar);
  const chosen = () => cells.filter((cell) => !cell.hidden);
  const filter = () => {
    for (const cell of cells) {
      cell.hidden = selects.some((select) => select.value && select.value !== cell.dataset[select.dataset.axis]);
    }
  };
  bar.addEventListener("change", () => {
    filter();
    if (chosen().length <= 8) chosen().forEach((cell) => { cell.open = true; });
  });
  opener.addEventListener("click", () => {
    const open = !chosen().every((cell) => cell.open);
    chosen().forEach((cell) => { cell.open = open; });
  });
  if (cells.length) cells[0].open = true;
}
