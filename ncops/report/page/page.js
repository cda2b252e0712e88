addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const numeric = head.dataset.kind !== "text";
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (!numeric) return down ? y.localeCompare(x) : x.localeCompare(y);
      if (x === "" || y === "") return (x === "") - (y === "");
      return down ? y - x : x - y;
    });
    body.append(...rows);
  }));
}
for (const input of document.querySelectorAll("input[data-filter]")) {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
for (const maps of document.querySelectorAll(".maps")) {
  const output = maps.querySelector("output"), at = event => event.target.closest("td[title]");
  const tell = cell => { if (cell) { output.textContent = cell.title; output.hidden = false; } };
  for (const kind of ["pointerover", "focusin"]) maps.addEventListener(kind, event => tell(at(event)));
  maps.addEventListener("pointerleave", () => { output.hidden = !at({target: document.activeElement}); });
  maps.addEventListener("click", event => at(event)?.focus());
  maps.addEventListener("keydown", event => {
    const cell = at(event), move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!cell || !move) return;
    const rows = cell.closest("table").tBodies[0].rows, row = rows[cell.parentNode.rowIndex - 1 + move[0]];
    const next = row?.cells[cell.cellIndex + move[1]];
    if (next?.title) next.focus();
    event.preventDefault();
  });
  for (const table of maps.querySelectorAll("table")) table.tBodies[0].rows[0].cells[1].tabIndex = 0;
}
