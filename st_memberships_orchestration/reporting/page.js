// Makes the plain tables of the page sortable, and its lists whole, filterable and a CSV file.
// Values of the lists are data from elsewhere: they become text, or numbers, and never markup.
"use strict";
(() => {
  const said = JSON.parse(document.getElementById("said").textContent);
  const formula = new RegExp(`^(?:${said.formula})`);
  const number = new RegExp(`^(?:${said.number})$`);
  const months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
  const escaped = DataTable.render.text().display;
  const grouped = new Intl.NumberFormat("en-US");
  const cents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const natural = new Intl.Collator("en", { numeric: true });
  const minus = (text) => text.replace("-", "\u2212");
  const shown = {
    count: (value) => minus(grouped.format(value)),
    money: (value) => minus(cents.format(value)),
    change: (value) => (value > 0 ? "+" : "") + minus(cents.format(value)),
    percent: (value) => `${minus((value * 100).toFixed(1))}\u00a0%`,
    day: (value) => `${Number(value.slice(8))} ${month(value)}`,
  };
  const numbers = ["count", "money", "change", "percent"];

  // Ids are text: they can be larger than the numbers of a script.
  function isId(kind) {
    return kind === "id" || kind in said.places;
  }

  function month(day) {
    return `${months[Number(day.slice(5, 7)) - 1]} ${day.slice(0, 4)}`;
  }

  function text(value, kind) {
    if (value === "") return "\u2013";
    return shown[kind] ? shown[kind](value) : escaped(String(value));
  }

  // The ISO days of a sentence break at no hyphen.
  function cell(value, kind) {
    const place = said.places[kind];
    if (place && /^\d+$/.test(value)) {
      return `<a href="${escaped(said.site)}/${place.replace("{}", value)}">${value}</a>`;
    }
    const all = text(value, kind);
    return kind === "long" ? all.replace(/\b\d{4}-\d\d-\d\d\b/g, "<time>$&</time>") : all;
  }

  // Of words that have an order of their own.
  function rank(word, order) {
    const found = order.indexOf(word);
    return found < 0 ? order.length : found;
  }

  // What is not known comes last.
  function inOrder(words, order) {
    return words.sort((a, b) => (a === "") - (b === "") || rank(a, order) - rank(b, order) || natural.compare(a, b));
  }

  function csv(head, lines) {
    const safe = (value) =>
      typeof value === "string" && formula.test(value) && !number.test(value) ? `'${value}` : String(value);
    const line = (values) => values.map((value) => `"${safe(value).replaceAll('"', '""')}"`).join(",");
    return [head, ...lines].map((values) => line(values) + "\r\n").join("");
  }

  function offer(table, name, contents) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "csv";
    button.textContent = "Download CSV";
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff", contents()], { type: "text/csv;charset=utf-8" }));
      link.download = `${said.tenant}-${name}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
    table.closest(".card").querySelector(".tools").append(button);
  }

  // A summary: all its rows are there.
  function sortable(table) {
    new DataTable(table, { paging: false, searching: false, info: false, order: [], autoWidth: false });
    offer(table, table.dataset.table, () =>
      csv(
        [...table.tHead.rows[0].cells].map((heading) => heading.dataset.key),
        [...table.querySelectorAll("tbody tr, tfoot tr")].map((row) =>
          [...row.cells].map((one) => one.dataset.filed ?? one.dataset.order ?? one.textContent),
        ),
      ),
    );
  }

  // A list: its rows come packed.
  async function whole(table, packed) {
    const bytes = Uint8Array.from(atob(packed.textContent), (char) => char.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const list = await new Response(unpacked).json();
    const rows = list.values[0].map((_value, line) => list.values.map((values) => values[line]));
    const all = list.columns.map((column, place) => ({ ...column, place: place + list.first }));
    const columns = all.filter((column) => !column.hidden);
    const wanted = new Map();
    const tools = table.closest(".card").querySelector(".tools");
    table.tBodies[0].replaceChildren();
    const made = new DataTable(table, {
      data: rows,
      columns: columns.map(({ kind, place, style, order }) => ({
        data: place,
        type: numbers.includes(kind) ? "num" : "string",
        className: style,
        render: (value, use) => {
          if (use === "display") return cell(value, kind);
          if (use === "filter" && !isId(kind)) return text(value, kind);
          if (use !== "sort") return value;
          if (order.length) return `${String(rank(value, order)).padStart(2, "0")} ${value}`;
          return isId(kind) ? value.padStart(20, "0") : kind === "day" ? value || "later" : value;
        },
        createdCell: (one, _value, _row, _line, at) => (one.dataset.label = columns[at].heading),
      })),
      order: [],
      pageLength: innerWidth < 600 ? 10 : said.rows,
      lengthMenu: [10, said.rows, 100, 1000],
      autoWidth: false,
      deferRender: true,
      orderClasses: false,
      layout: { topStart: null, topEnd: "search", bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
    });
    made.table().container().querySelector("nav")?.setAttribute("aria-label", `Pages of ${table.dataset.table}`);
    made.search.fixed("chosen", (_text, _row, line) =>
      [...wanted].every(([place, test]) => test(rows[line][place])),
    );
    for (const { place, kind, heading, filter, order } of all) {
      if (!filter) continue;
      const of = kind === "day" ? (value) => value.slice(0, 7) : (value) => value;
      const values = inOrder([...new Set(list.values[place].map(of))], order);
      const choice = document.createElement("select");
      choice.setAttribute("aria-label", heading);
      choice.add(new Option(kind === "day" ? `${heading}: all months` : `${heading}: all`, "*"));
      for (const value of values) {
        choice.add(new Option(value === "" ? "not known" : kind === "day" ? month(value) : value, `=${value}`));
      }
      choice.addEventListener("change", () => {
        wanted.delete(place);
        if (choice.value !== "*") wanted.set(place, (value) => of(value) === choice.value.slice(1));
        made.draw();
      });
      tools.append(choice);
    }
    offer(table, table.dataset.table, () =>
      csv(list.head, made.rows({ search: "applied", order: "applied" }).data().toArray()),
    );
    table.closest(".card").querySelector(".rest").remove();
  }

  function begin(table) {
    const packed = document.getElementById(`rows-${table.dataset.table}`);
    if (packed && typeof DecompressionStream === "undefined") return; // the plain table stays
    if (packed) whole(table, packed);
    else sortable(table);
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        begin(target);
      }
    },
    { rootMargin: "600px" },
  );
  document.querySelectorAll("table[data-table]").forEach((table) => seen.observe(table));
})();
