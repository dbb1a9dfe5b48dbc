() => {
  // Ctrl/Cmd + Enter in a history box presses the Recommend button beside it.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const panel = event.target.closest?.(".gh-panel");
    const button = panel?.querySelector("button.gh-go");
    if (button) { event.preventDefault(); setTimeout(() => button.click(), 50); }
  });
}
