// Offers titles for the line that is being typed in the panel's history box. Arrow keys choose, Enter takes, Escape closes.
let timer = 0, chosen = -1;
const box = () => element.closest(".gh-panel")?.querySelector(".gh-history textarea");
const options = () => [...element.querySelectorAll("[role=option]")];
const isOpen = () => element.classList.contains("gh-open");

const line = (field) => {
  const caret = field.selectionStart, start = field.value.lastIndexOf("\n", caret - 1) + 1;
  const end = field.value.indexOf("\n", caret);
  return {start, end: end < 0 ? field.value.length : end, text: field.value.slice(start, end < 0 ? undefined : end)};
};

const mark = (place) => {
  chosen = place;
  options().forEach((option, n) => option.setAttribute("aria-selected", String(n === place)));
  const field = box(), option = options()[place];
  if (option) { field?.setAttribute("aria-activedescendant", option.id); option.scrollIntoView({block: "nearest"}); }
  else field?.removeAttribute("aria-activedescendant");
};

const close = () => { clearTimeout(timer); mark(-1); element.classList.remove("gh-open"); };

const take = (option) => {
  const field = box(), {start, end} = line(field), title = option.dataset.title;
  const tail = field.value.slice(end) || "\n";
  close();
  field.value = field.value.slice(0, start) + title + tail;
  field.selectionStart = field.selectionEnd = start + title.length + 1;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};

document.addEventListener("input", (event) => {
  const field = box();
  if (!event.isTrusted || event.target !== field) return;
  field.setAttribute("aria-autocomplete", "list");
  clearTimeout(timer);
  const pasted = event.inputType.startsWith("insertFrom") || (!event.isComposing && event.data?.length > 1);
  if (pasted || event.inputType === "insertLineBreak") return close();
  const text = line(field).text;
  if (text.trim().length < 2) return close();
  timer = setTimeout(() => trigger("input", {line: text}), 150);
});

watch("value", () => {
  const field = box(), list = element.querySelector("[role=listbox]");
  const now = field && document.activeElement === field && line(field).text === list?.dataset.line;
  element.classList.toggle("gh-open", Boolean(now));
  if (list) field?.setAttribute("aria-controls", list.id);
  mark(-1);
});

document.addEventListener("keydown", (event) => {
  if (event.target !== box() || !isOpen() || event.isComposing) return;
  const all = options();
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const step = event.key === "ArrowDown" ? 1 : -1;
    mark((chosen + step + all.length + (chosen < 0 && step < 0 ? 1 : 0)) % all.length);
  } else if (event.key === "Enter" && chosen >= 0 && !event.ctrlKey && !event.metaKey) take(all[chosen]);
  else if (event.key === "Escape" || event.key === "Tab") { close(); if (event.key === "Tab") return; }
  else { if (event.key === "Enter" || event.key === "Home" || event.key === "End") close(); return; }
  event.preventDefault();
  event.stopPropagation();
}, true);

element.addEventListener("mousedown", (event) => {
  const option = event.target.closest("[role=option]");
  if (!option) return;
  event.preventDefault();
  take(option);
});
document.addEventListener("focusout", (event) => { if (event.target === box()) setTimeout(close, 150); });
