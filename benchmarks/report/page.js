"use strict";
(() => {
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Pages: the part of the address after # names the section that is shown.
  const views = all(".view");
  const show = (moved) => {
    const key = decodeURIComponent(location.hash.slice(1)) || "models";
    const within = document.getElementById(key);
    const view = within && within.closest(".view") || (moved ? null : views[0]);
    if (!view) return;
    views.forEach((other) => other.classList.toggle("on", other === view));
    const chapter = view.id.startsWith("family-") ? "families" : /^(docs|results)-/.test(view.id) ? "docs" : view.id;
    all("nav a").forEach((link) => {
      if (link.hash === "#" + chapter) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    document.title = (view.id === "models" ? "" : one("h1", view).textContent + " · ") + "efficient-zoo";
    hide();
    if (within !== view) within.scrollIntoView();
    else if (moved) { window.scrollTo(0, 0); one("#main").focus({ preventScroll: true }); }
  };

  // The table: a column's button sorts by it, and the other way round when pressed again; what has no figure is last.
  const body = one("#table tbody"), heads = all("#table thead th");
  const named = new Intl.Collator("en", { numeric: true });
  const key = (row, column) => {
    const cell = row.cells[column];
    if (heads[column].classList.contains("text")) return cell.textContent.trim();
    return "v" in cell.dataset ? Number(cell.dataset.v) : null;
  };
  heads.forEach((head, column) => one("button", head).addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...body.rows].map((row) => [key(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "string" ? named.compare(a, b) : a - b;
      return down ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
  }));

  // Filters: every word must be found.
  const filter = () => {
    const words = one("#words").value.toLowerCase().split(/\s+/).filter(Boolean), task = one("#task").value;
    let shown = 0;
    for (const row of body.rows) {
      const fits = words.every((word) => row.dataset.words.includes(word)) && (!task || row.dataset.task === task)
        && (!one("#scored").checked || "scored" in row.dataset) && (!one("#timed").checked || "timed" in row.dataset);
      row.hidden = !fits;
      shown += fits;
    }
    one("#shown").textContent = shown === body.rows.length ? `${shown} models` : `${shown} of ${body.rows.length} models`;
  };
  one(".filters").addEventListener("input", filter);
  one(".filters").addEventListener("submit", (event) => event.preventDefault());

  // What a mark of a plot is, beside the pointer or at the mark that has the focus.
  const tip = one("#tip");
  const hide = () => { tip.hidden = true; };
  const tell = (mark, x, y) => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(4, y + 16 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 16) + "px";
  };
  const marked = (event) => event.target.closest && event.target.closest("[data-tip]");
  document.addEventListener("pointermove", (event) => {
    const mark = marked(event);
    if (mark) tell(mark, event.clientX, event.clientY);
    else if (!document.activeElement.matches("[data-tip]")) hide();
  });
  document.addEventListener("focusin", (event) => {
    const mark = marked(event);
    if (!mark) return hide();
    const box = mark.getBoundingClientRect();
    tell(mark, box.left + box.width / 2, box.top + box.height / 2);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  all("[data-tip] > title").forEach((title) => title.remove());

  // Colours: as the system, light, dark.
  const themes = ["", "light", "dark"], button = one("#theme");
  const paint = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.setAttribute("aria-label", "Colours: " + (theme || "as the system"));
    button.title = button.getAttribute("aria-label");
  };
  let stored = "";
  try { stored = localStorage.getItem("theme") || ""; } catch { /* a page from a file may have no storage */ }
  paint(stored);
  button.addEventListener("click", () => {
    stored = themes[(themes.indexOf(stored) + 1) % themes.length];
    paint(stored);
    try { localStorage.setItem("theme", stored); } catch { /* then only until it is closed */ }
  });

  window.addEventListener("hashchange", () => show(true));
  show(false);
})();
