// The filters of the scoreboard: rows and sections that do not match are hidden. Without this script all are shown.
const form = document.getElementById("scoreboard-filters");
const sections = [...document.querySelectorAll("section.scoreboard")];
const heading = (section) => section.querySelector("h2").firstChild.textContent.trim();
const verdict = (row) => [...row.classList].find((name) => name.startsWith("verdict-")).slice("verdict-".length);
const rowsOf = (section) => [...section.querySelectorAll("tbody tr")];
const all = sections.flatMap(rowsOf);

for (const name of new Set(all.map(verdict))) form.verdict.add(new Option(name.replace(/-/g, " "), name));
for (const section of sections) form.chapter.add(new Option(heading(section), section.id));

function filter() {
  const wanted = form.text.value.trim().toLowerCase();
  let shown = 0;
  for (const section of sections) {
    const here = !form.chapter.value || form.chapter.value === section.id;
    let some = false;
    for (const row of rowsOf(section)) {
      row.hidden = !(
        here &&
        (!form.verdict.value || verdict(row) === form.verdict.value) &&
        (!form.published.checked || row.cells[3].textContent.trim() !== "–") &&
        row.cells[0].textContent.toLowerCase().includes(wanted)
      );
      some = some || !row.hidden;
      shown += !row.hidden;
    }
    section.hidden = !some;
  }
  form.querySelector("output").textContent = `${shown} of ${all.length} claims`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
