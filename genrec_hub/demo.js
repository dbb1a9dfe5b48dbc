() => {
  // Ctrl/Cmd + Enter in a history box presses the Recommend button beside it.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const panel = event.target.closest?.(".gh-panel");
    const button = panel?.querySelector("button.gh-go");
    if (button) { event.preventDefault(); setTimeout(() => button.click(), 50); }
  });

  // Gradio gives every radio button a group of its own, so the browser's arrow keys do not go from one to the next.
  document.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || event.target.type !== "radio") return;
    const all = [...event.target.closest(".wrap").querySelectorAll("input[type=radio]")];
    const next = all[(all.indexOf(event.target) + step + all.length) % all.length];
    event.preventDefault();
    next.focus();
    next.click();
  });

  // A file of another kind, or too large, is refused in words before it travels.
  const refuse = (event, files) => {
    if (!event.target.closest?.(".gh-upload")) return;
    const said = document.querySelector(".gh-refusal p"), file = files?.[0];
    if (!said || !file) return;
    const limit = Number(said.dataset.bytes), kinds = said.dataset.kinds.split(" ");
    const megabytes = (bytes) => `${Math.round(bytes / 2 ** 20)} MB`;
    said.textContent = !kinds.some((kind) => file.name.toLowerCase().endsWith(kind))
      ? `${file.name} is of an unknown kind: the endings known are ${kinds.join(", ")}.`
      : file.size > limit ? `${file.name} has ${megabytes(file.size)}, the limit is ${megabytes(limit)}: upload a part of it, or drop columns.` : "";
    if (!said.textContent) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.type === "file") event.target.value = "";
  };
  document.addEventListener("change", (event) => { if (event.target.type === "file") refuse(event, event.target.files); }, true);
  document.addEventListener("drop", (event) => refuse(event, event.dataTransfer?.files), true);
}
