"use strict";
// Sort a table by the column whose heading is clicked; a second click turns the order round.
const missing = (text) => text === "" || text === "nan";
const compare = (a, b) => {
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.querySelectorAll("thead th")];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.value;
      const order = (one, two) => {
        const [a, b] = [value(one), value(two)];
        // what is missing stays at the end
        return down && !missing(a) && !missing(b) ? compare(b, a) : compare(a, b);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
// Choose schemes of the legend to see them alone.
for (const section of document.querySelectorAll(".task")) {
  const buttons = [...section.querySelectorAll(".legend button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      const pressed = buttons.filter((one) => one.getAttribute("aria-pressed") === "true");
      const chosen = new Set(pressed.map((one) => one.dataset.series));
      for (const drawn of section.querySelectorAll(".charts [data-series]")) {
        drawn.classList.toggle("dim", chosen.size > 0 && !chosen.has(drawn.dataset.series));
      }
    });
  }
}
// What is folded cannot be opened on paper; the configs of the runs are too many for it.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.run)")) details.open = true;
});
