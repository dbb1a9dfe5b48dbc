// Buttons of the understood lines: tells the server what was pressed, and keeps the keyboard where it was after the lines are drawn anew.
let pressed = null;
const panel = () => element.closest(".gh-panel");
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const line = Number(button.dataset.line ?? -1), act = button.dataset.do;
  pressed = {act, line: act === "earlier" ? line - 1 : act === "later" ? line + 1 : line};
  trigger("click", {do: act, line, title: button.dataset.title ?? ""});
});
watch("value", () => {
  if (!pressed || document.activeElement?.matches("textarea, input")) return;
  const {act, line} = pressed;
  const row = element.querySelectorAll(".gh-line")[line] ?? [...element.querySelectorAll(".gh-line")].at(-1);
  const same = row?.querySelector(`button[data-do="${act}"]:not(:disabled)`);
  (same ?? row?.querySelector("button:not(:disabled)") ?? panel()?.querySelector(".gh-history textarea"))?.focus({preventScroll: true});
  pressed = null;
});
